# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a configuration: all of it at once, each with its place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hvring.errors import HvringError
from hvring.events import printable


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong; ``line`` from 1, None if no line is to blame."""

    text: str
    path: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        """``FILE:LINE: words``, as compilers say it; printable, whatever was in the file."""
        places = [str(place) for place in (self.path, self.line) if place is not None]
        return printable(f"{':'.join(places)}: {self.text}" if places else self.text)


class ConfigError(HvringError):
    """A configuration that cannot be used; ``problems`` has at least one."""

    is_final = True

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda problem: problem.line or 0))
        super().__init__("; ".join(map(str, self.problems)))
