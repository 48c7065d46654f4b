# SPDX-License-Identifier: Apache-2.0
"""Words of the command line that are more than a text; each raises argparse's error with what would be right."""

from __future__ import annotations

import argparse
import math
import os

from hvring.guest.patterns import mistake

#: The number that is no user and no group: to the kernel it says "leave it".
NOBODY = 2**32 - 1


def directory(text: str) -> str:
    """A path.  An empty one would be the working directory: a variable of a script that was never set."""
    if not text:
        raise argparse.ArgumentTypeError("an empty text names no directory")
    return text


def file_systems(text: str) -> str:
    """A pattern of :mod:`hvring.guest.patterns`."""
    problem = mistake(text)
    if problem is not None:
        raise argparse.ArgumentTypeError(problem)
    return text


def control_socket(text: str) -> str:
    """``auto``, ``none``, or a path, which is made absolute."""
    return text if text in ("auto", "none") else os.path.abspath(directory(text))


def mode(text: str) -> int:
    """The mode of a file, octal."""
    try:
        value = int(text, 8)
    except ValueError:
        value = -1
    if not 0 <= value <= 0o7777:
        raise argparse.ArgumentTypeError(f"{text!r} is no octal number from 0 to 7777")
    return value


def owner(text: str) -> tuple[int, int]:
    """Numbers of a user and a group."""
    parts = text.split(":")
    if len(parts) != 2 or not all(
        part.isascii() and part.isdecimal() and int(part) < NOBODY for part in parts
    ):
        raise argparse.ArgumentTypeError(f"{text!r} is no UID:GID such as 1000:1000")
    return int(parts[0]), int(parts[1])


def size(text: str) -> int:
    """A number of bytes."""
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of bytes")
    return int(text)


def backup_flags(text: str) -> int | None:
    """32 bits, decimal or 0x…; ``host`` is None."""
    if text == "host":
        return None
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of 32 bits nor the word host")
    return value


def seconds(text: str) -> float:
    """A time, neither nothing nor for ever."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return value
