# SPDX-License-Identifier: Apache-2.0
"""A version as messages have it."""

from __future__ import annotations

from typing import NamedTuple


class Version(NamedTuple):
    """A framework or message version; exact pairs are what negotiation compares."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"
