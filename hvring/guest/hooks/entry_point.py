# SPDX-License-Identifier: Apache-2.0
"""Hooks that Python packages bring, as entry points of the group ``hvring.hooks``: each runs as a program of its own.

What an entry point names is a class, or a function that gives an object, with any of the methods ``prepare``,
``freeze``, ``thaw`` and ``abort``, without arguments; the environment is that of any hook.  An object that freezes and
has an end stays alive across the freeze.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, Final

from hvring.guest.hooks.found import Hook

GROUP: Final = "hvring.hooks"
_ROOT: Final = os.path.abspath(f"{__file__}/../../../..")
_PROGRAM: Final = "; ".join(
    (
        "import sys",
        "sys.path.insert(0, sys.argv.pop(1))",
        "from hvring.guest.hooks.entry_point import main",
        "main(sys.argv[1:])",
    )
)


def names() -> list[str]:
    """Of those that are installed, in order."""
    from importlib.metadata import entry_points

    return sorted({point.name for point in entry_points(group=GROUP)})


def hooks(wanted: Sequence[str], group: int) -> list[Hook]:
    """As programs; ``group``: after which directories."""
    return [
        Hook(name, (sys.executable, "-I", "-c", _PROGRAM, _ROOT, name), "native", group) for name in wanted
    ]


def main(arguments: Sequence[str]) -> None:
    """``NAME PHASE``: as any hook."""
    from importlib.metadata import entry_points

    name, phase = arguments
    (point, *_) = entry_points(group=GROUP, name=name)
    made: Any = point.load()()
    ends = [word for word in ("thaw", "abort") if hasattr(made, word)]
    _call(made, phase)
    if phase == "freeze" and ends:
        print("held", flush=True)
        _call(made, sys.stdin.readline().strip() or "abort")


def _call(made: Any, phase: str) -> None:
    method = getattr(made, phase, None)
    if method is not None:
        method()
