# SPDX-License-Identifier: Apache-2.0
"""In which line of a TOML text each key and each element stands; tomllib does not say."""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from collections.abc import Mapping
from typing import Final

Path = tuple[str | int, ...]
"""Keys, and numbers of elements from 0: ``("kvp", "timeout")``, ``("fcopy", "allow", 0)``."""

_BLANK: Final = re.compile(r"(?:[ \t\n]|#[^\n]*)*")
_BLANK_IN_LINE: Final = re.compile(r"[ \t]*")
_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
# The end of a text of many lines may have up to two quotes before it that belong to the text.
_TEXT: Final = re.compile(
    r'"""(?:\\.|[^\\])*?"""(?:"{0,2})' + r"|'''.*?'''(?:'{0,2})" + r'|"(?:\\.|[^"\\\n])*"' + r"|'[^'\n]*'",
    re.DOTALL,
)
_SCALAR: Final = re.compile(r"[^,\]}\n#]*")


def places(text: str) -> dict[Path, int]:
    """The line, from 1, of each path.  ``text`` is one that tomllib takes; of another, what was understood."""
    scanner = _Scanner(text.replace("\r\n", "\n"))
    try:
        scanner.scan()
    except _NotTomlError:
        pass
    return scanner.found


def place(found: Mapping[Path, int], path: Path) -> int | None:
    """The line of ``path``, or else of the nearest thing around it."""
    while path and path not in found:
        path = path[:-1]
    return found.get(path)


class _NotTomlError(Exception):
    """tomllib would not have taken it."""


class _Scanner:
    def __init__(self, text: str) -> None:
        self.found: dict[Path, int] = {}
        self._text = text
        self._at = 0
        self._line_ends = [match.start() for match in re.finditer("\n", text)]
        self._elements: dict[Path, int] = {}  # of arrays of tables

    def scan(self) -> None:
        """All of it."""
        table: Path = ()
        while True:
            self._skip(_BLANK)
            if self._at == len(self._text):
                return
            if self._takes("[["):
                table = self._header(is_element=True)
                self._expect("]]")
            elif self._takes("["):
                table = self._header(is_element=False)
                self._expect("]")
            else:
                self._pair(table)

    def _header(self, *, is_element: bool) -> Path:
        keys = self._keys()
        path: Path = ()
        for n, key in enumerate(keys):
            path = (*path, key)
            self._note(path)
            if is_element and n == len(keys) - 1:
                self._elements[path] = self._elements.get(path, 0) + 1
            if path in self._elements:
                path = (*path, self._elements[path] - 1)
                self._note(path)
        return path

    def _pair(self, table: Path) -> None:
        path = table
        for key in self._keys():
            path = (*path, key)
            self._note(path)
        self._expect("=")
        self._skip(_BLANK_IN_LINE)
        self._value(path)

    def _value(self, path: Path) -> None:
        if self._takes("["):
            self._array(path)
        elif self._takes("{"):
            self._inline_table(path)
        elif self._text[self._at : self._at + 1] in ('"', "'"):
            self._match(_TEXT)
        else:
            self._match(_SCALAR)

    def _array(self, path: Path) -> None:
        n = 0
        while True:
            self._skip(_BLANK)
            if self._takes("]"):
                return
            self._note((*path, n))
            self._value((*path, n))
            self._skip(_BLANK)
            if not self._takes(","):
                self._expect("]")
                return
            n += 1

    def _inline_table(self, path: Path) -> None:
        while True:
            self._skip(_BLANK)
            if self._takes("}"):
                return
            self._pair(path)
            self._skip(_BLANK)
            if not self._takes(","):
                self._expect("}")
                return

    def _keys(self) -> list[str]:
        keys = []
        while True:
            self._skip(_BLANK_IN_LINE)
            letter = self._text[self._at : self._at + 1]
            if letter in ('"', "'"):
                quoted = self._match(_TEXT)
                keys.append(quoted[1:-1] if letter == "'" else tomllib.loads(f"key = {quoted}")["key"])
            else:
                keys.append(self._match(_BARE_KEY))
            self._skip(_BLANK_IN_LINE)
            if not self._takes("."):
                return keys

    def _note(self, path: Path) -> None:
        self.found.setdefault(path, bisect_right(self._line_ends, self._at - 1) + 1)

    def _skip(self, blank: re.Pattern[str]) -> None:
        self._match(blank)

    def _match(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._text, self._at)
        if match is None:
            raise _NotTomlError
        self._at = match.end()
        return match[0]

    def _takes(self, word: str) -> bool:
        if not self._text.startswith(word, self._at):
            return False
        self._at += len(word)
        return True

    def _expect(self, word: str) -> None:
        if not self._takes(word):
            raise _NotTomlError
