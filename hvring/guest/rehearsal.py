# SPDX-License-Identifier: Apache-2.0
"""What all rehearsed effects have in common: they say what they would do, and remember the newest of it."""

from __future__ import annotations

from typing import Final, TypeVar

T = TypeVar("T")

#: Remembered at most: a host could go on for ever.
_REMEMBERED: Final = 1000


def rehearse(record: list[T], one: T, what: str) -> None:
    """Add ``one`` to ``record``, which forgets the oldest, and log that ``what`` would have been done."""
    import logging

    record.append(one)
    del record[:-_REMEMBERED]
    logging.getLogger("hvring.guest").info("rehearsal: would %s", what)
