# SPDX-License-Identifier: Apache-2.0
"""What is different between two states of a pool."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Items = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Change:
    """``value`` None: the key is gone.  ``was`` None: it was not there before."""

    key: str
    value: str | None
    was: str | None = None


def difference(before: Items, after: Items) -> Iterator[Change]:
    """What happened, in the order of the pool, then what went.

    Of several records of one key the last counts; each one that was added behind them is a change of its own, so that
    nothing is missed of what programs append.
    """
    old, new = _by_key(before), _by_key(after)
    for key, values in new.items():
        had = old.get(key, [])
        fresh = values[len(had) :] if values[: len(had)] == had else values[-1:]
        if fresh == had[-1:] and len(values) <= len(had):
            continue  # superseded records were dropped
        was = had[-1] if had else None
        for value in fresh:
            yield Change(key, value, was)
            was = value
    for key, had in old.items():
        if key not in new:
            yield Change(key, None, had[-1])


def _by_key(items: Items) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key, value in items:
        found.setdefault(key, []).append(value)
    return found
