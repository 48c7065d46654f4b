# SPDX-License-Identifier: Apache-2.0
"""argparse's parser, as wide as the terminal without shutil: that brings five libraries for archives.

argparse lays out each argument when it is added, to see that it can; an agent that stays for as long as the machine
would keep what that loads.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any, Final

_USUAL: Final = 80  # columns where there is no terminal
_MARGIN: Final = 2


def columns() -> int:
    """As of shutil.get_terminal_size: what COLUMNS says, or the terminal."""
    try:
        said = int(os.environ.get("COLUMNS", ""))
    except ValueError:
        said = 0
    if said > 0:
        return said
    if sys.__stdout__ is None:  # closed before the start
        return _USUAL
    try:
        return os.get_terminal_size(sys.__stdout__.fileno()).columns or _USUAL
    except (ValueError, OSError):  # closed since, or no terminal
        return _USUAL


class _Layout(argparse.HelpFormatter):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"width": columns() - _MARGIN} | kwargs)


class RawLayout(_Layout, argparse.RawDescriptionHelpFormatter):
    """For a description that is laid out already."""


class Parser(argparse.ArgumentParser):
    """A parser whose own and whose commands' words are laid out so."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"formatter_class": _Layout} | kwargs)
