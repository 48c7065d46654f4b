# SPDX-License-Identifier: Apache-2.0
"""Which PTP clocks chrony's configuration names; read, and never run or changed."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final

from hvring.guest.regular import read_regular

CONFIGURATIONS: Final = ("/etc/chrony/chrony.conf", "/etc/chrony.conf")  # Debian's, and everybody else's

_MOST_FILES: Final = 100
_MOST_BYTES: Final = 1 << 16
_DEEPEST: Final = 10  # chrony's own limit for files that include files
_COMMENTS: Final = "!;#%"


def configuration(arguments: Sequence[str], root: str = "") -> str | None:
    """The file of a chronyd that was started with these arguments; None if it has none of the usual ones."""
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if word == "-f" and following:
            return following
    return next((path for path in CONFIGURATIONS if os.path.exists(f"{root}{path}")), None)


def ptp_sources(path: str, root: str = "") -> list[str]:
    """The devices of all lines ``refclock PHC …``, of included files, too; OSError if ``path`` cannot be read.

    Files that are included and cannot be read, or are too many, are left out.  ``sourcedir`` holds servers only.
    """
    return list(_Reader(root).sources(path, 0))


class _Reader:
    def __init__(self, root: str) -> None:
        self._root = root
        self._left = _MOST_FILES

    def sources(self, path: str, depth: int) -> Iterator[str]:
        self._left -= 1
        text = read_regular(f"{self._root}{path}", _MOST_BYTES).decode("utf-8", "replace")
        for line in text.splitlines():
            words = line.split()
            if not words or words[0][0] in _COMMENTS:
                continue
            match words[0].lower(), words[1:]:
                case "refclock", [driver, device, *_] if driver.upper() == "PHC":
                    yield device.partition(":")[0]  # options of the driver follow
                case "include", [pattern, *_]:
                    yield from self._included(self._matching(pattern), depth)
                case "confdir", directories:
                    yield from self._included(self._in(directories), depth)

    def _included(self, paths: Sequence[str], depth: int) -> Iterator[str]:
        for path in paths:
            if depth >= _DEEPEST or self._left <= 0:
                return
            try:
                yield from self.sources(path, depth + 1)
            except OSError:
                continue

    def _matching(self, pattern: str) -> list[str]:
        found = islice(glob.iglob(f"{glob.escape(self._root)}{pattern}"), _MOST_FILES)
        return sorted(path.removeprefix(self._root) for path in found)

    def _in(self, directories: Sequence[str]) -> list[str]:
        """Of files with one name the one in the first directory counts; they are read in the order of their names."""
        chosen: dict[str, str] = {}
        for directory in directories:
            try:
                names = os.listdir(f"{self._root}{directory}")
            except OSError:
                continue
            for name in names:
                if name.endswith(".conf"):
                    chosen.setdefault(name, f"{directory}/{name}")
        return [chosen[name] for name in sorted(chosen)]
