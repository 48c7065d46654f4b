# SPDX-License-Identifier: Apache-2.0
"""What takes long is not done again and again without a rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from hvring.guest.pace import LONG, LONGEST, SHARE, Pace
from hvring.guest.pools import PoolStore
from hvring.pending import Pending, settle


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float) -> str:
        self.now += seconds
        return "done"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.mark.parametrize("seconds", [2 * LONG, 0.04, 0.3, 20.0])
def test_long_steps_have_a_small_share_of_the_time_and_each_comes_soon(clock: Clock, seconds: float) -> None:
    pace, busy, began = Pace(clock), 0.0, clock.now
    for _ in range(50):
        outcome = pace.go(lambda: clock.work(seconds))
        if isinstance(outcome, Pending):
            assert outcome.at - clock.now <= LONGEST
            clock.now = outcome.at
            assert outcome.resume() == "done"
        busy += seconds
    rest = min(SHARE * seconds, LONGEST)
    assert clock.now - began >= busy + 49 * rest * 0.999


def test_short_steps_need_no_rest(clock: Clock) -> None:
    pace = Pace(clock)
    assert {pace.go(lambda: clock.work(LONG / 2)) for _ in range(1000)} == {"done"}


def test_who_comes_too_early_waits_on(clock: Clock) -> None:
    pace = Pace(clock)
    pace.go(lambda: clock.work(0.05))
    waiting = pace.go(lambda: clock.work(0.0))
    assert isinstance(waiting, Pending)
    still = waiting.resume()
    assert isinstance(still, Pending)
    assert still.at == waiting.at


def test_a_step_that_fails_or_is_done_later_counts_as_well(clock: Clock) -> None:
    def fails() -> None:
        clock.work(0.05)
        raise OSError("no")

    pace = Pace(clock)
    with pytest.raises(OSError, match="no"):
        pace.go(fails)
    assert isinstance(pace.go(lambda: 1), Pending)
    clock.now += LONGEST
    cancelled: list[str] = []
    later = pace.go(lambda: Pending(lambda: clock.work(0.05), 7.0, 3, lambda: cancelled.append("yes")))
    assert isinstance(later, Pending)
    later.cancel()
    assert (later.at, later.descriptor, cancelled) == (7.0, 3, ["yes"])
    assert later.resume() == "done"
    assert isinstance(pace.go(lambda: 1), Pending)


def test_a_host_cannot_have_a_large_pool_written_anew_without_a_rest(tmp_path: Path) -> None:
    records = (f"key{n}".encode().ljust(2560, b"\0") for n in range(16_000))
    (tmp_path / ".kvp_pool_0").write_bytes(b"".join(records))
    store = PoolStore(tmp_path)
    assert store.delete(0, "key0") is True
    waiting = store.delete(0, "key1")
    assert isinstance(waiting, Pending)
    assert isinstance(store.set(1, "a", "b"), Pending)
    assert store.get(0, "key2") == ""
    assert settle(waiting) is True
    assert len(store.pools[0]) == 15_998
