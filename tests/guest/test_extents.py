# SPDX-License-Identifier: Apache-2.0
"""When a file is whole: against a set of bytes, which knows."""

from __future__ import annotations

import random

import pytest

from hvring.errors import EffectError
from hvring.guest.extents import MOST_PIECES, Extents


def is_whole(extents: Extents) -> bool:
    try:
        extents.check_whole()
    except EffectError:
        return False
    return True


@pytest.mark.parametrize("seed", range(50))
def test_a_file_is_whole_exactly_if_every_byte_came(seed: int) -> None:
    chance = random.Random(seed)
    size = chance.randrange(1, 40)
    announced, unannounced = Extents(size), Extents()
    came: set[int] = set()
    for _ in range(60):
        offset = chance.randrange(size)
        count = chance.randrange(size - offset + 1)
        for extents in (announced, unannounced):
            extents.check(offset, count)
            extents.add(offset, count)
        came.update(range(offset, offset + count))
        assert announced.length == unannounced.length == max(came, default=-1) + 1
        assert is_whole(announced) == (len(came) == size)
        assert is_whole(unannounced) == (len(came) == announced.length)


@pytest.mark.parametrize(
    ("extents", "offset", "count"),
    [
        (Extents(100), 100, 1),
        (Extents(100), 99, 2),
        (Extents(100), -1, 1),
        (Extents(100), 1 << 40, 1),
        (Extents(100), 101, 0),
        (Extents(0, limit=10), 10, 1),
        (Extents(0), (1 << 63) - 1, 1),
    ],
)
def test_bytes_outside_of_the_file_are_refused(extents: Extents, offset: int, count: int) -> None:
    with pytest.raises(EffectError):
        extents.check(offset, count)


def test_the_last_byte_of_a_tebibyte_is_not_a_tebibyte() -> None:
    for extents in (Extents(1 << 40), Extents()):
        extents.check((1 << 40) - 1, 1)
        extents.add((1 << 40) - 1, 1)
        assert not is_whole(extents)


def test_the_pieces_are_counted_and_one_more_is_refused() -> None:
    extents = Extents()
    for n in range(MOST_PIECES):
        extents.check(2 * n, 1)
        extents.add(2 * n, 1)
    with pytest.raises(EffectError):
        extents.check(2 * MOST_PIECES, 1)
    extents.check(2 * MOST_PIECES - 1, 1)  # this one touches the last
