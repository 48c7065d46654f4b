# SPDX-License-Identifier: Apache-2.0
"""How long a wait may look before it sleeps, by a clock of the test's own (docs/decisions/0005)."""

from __future__ import annotations

import math
import os
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvring.channel._spinner import Spinner

US, MS = 1_000, 1_000_000
BURST = MS
LIMIT = 64 * US

pytestmark = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) == 1, reason="on one processor no channel ever spins"
)


class Clock:
    """A spinner, and waits whose packets come after given delays."""

    def __init__(self, limit: int = LIMIT, share: float = 1.0) -> None:
        self.now = self.start = 10**12
        self.spinner = Spinner()
        self.spinner.set(limit, share, self.now)

    def wait(self, delay: int, wake: int = 30 * US) -> bool:
        """A packet comes `delay` ns after the wait began; True: it was looked for."""
        budget = self.spinner.budget(self.now)
        assert budget <= self.spinner.limit
        began = self.now
        if budget:
            self.now += min(delay, budget)
            self.spinner.seen(delay <= budget, self.now, budget)
        if delay > budget:
            self.now = began + delay + wake
            self.spinner.slept(self.now, True)
        return budget > 0


def quick(clock: Clock, times: int = 20) -> Clock:
    for _ in range(times):
        clock.wait(5 * US)
    assert clock.spinner.bound > 0
    return clock


def test_the_first_wait_sleeps_and_a_quick_one_is_followed_by_a_look_of_a_quarter() -> None:
    clock = Clock()
    assert clock.wait(5 * US) is False
    assert clock.spinner.bound == LIMIT // 4
    assert clock.wait(5 * US) is True
    assert (clock.spinner.spins, clock.spinner.won, clock.spinner.spun) == (1, 1, 5 * US)


@pytest.mark.parametrize("delay", [40 * US, 60 * US])
def test_a_bound_that_is_too_short_doubles_up_to_the_limit(delay: int) -> None:
    clock = Clock()
    bounds = []
    for _ in range(6):
        clock.wait(delay)
        bounds.append(clock.spinner.bound)
    assert bounds == [LIMIT // 4, LIMIT // 2, LIMIT, LIMIT, LIMIT, LIMIT]
    assert clock.wait(delay)


def test_a_bound_that_is_too_long_shrinks_but_not_to_nothing() -> None:
    clock = Clock()
    for _ in range(200):
        clock.wait(100)
    assert clock.spinner.bound == 2 * US
    assert clock.spinner.won == 199


@pytest.mark.parametrize("delay", [11 * MS, 3600 * 1000 * MS])
def test_after_an_idle_time_nothing_is_spun(delay: int) -> None:
    clock = quick(Clock())
    clock.wait(delay)
    spins = clock.spinner.spins
    for _ in range(100):
        assert clock.wait(delay) is False
    assert clock.spinner.spins == spins


def test_a_time_out_counts_as_idle_when_it_was_long_and_as_nothing_when_it_was_short() -> None:
    clock = quick(Clock())
    bound = clock.spinner.bound
    clock.spinner.budget(clock.now)
    clock.spinner.slept(clock.now + 20 * US, False)
    assert clock.spinner.bound == bound
    clock.spinner.budget(clock.now)
    clock.spinner.slept(clock.now + 20 * MS, False)
    assert clock.spinner.bound == 0


def test_it_recovers_after_an_idle_time_by_one_quick_sleep() -> None:
    clock = quick(Clock())
    clock.wait(50 * MS)
    assert clock.wait(5 * US) is False
    assert clock.wait(5 * US) is True


def test_delays_that_are_a_bit_too_long_are_given_up_and_tried_ever_more_seldom() -> None:
    clock = Clock()
    looked = [clock.wait(150 * US) for _ in range(20_000)]
    assert clock.spinner.won == 0
    assert 0 < sum(looked[:40]) <= 12
    assert sum(looked[10_000:]) <= 10_000 // 1024 * 6 + 6


def test_the_bucket_gives_a_burst_and_then_its_share() -> None:
    clock = Clock(LIMIT, 0.05)
    waits = 2_000
    for _ in range(waits):
        clock.wait(20 * US)
    elapsed = clock.now - clock.start
    assert clock.spinner.spun <= BURST + 0.05 * elapsed
    assert clock.spinner.spun >= 0.9 * 0.05 * elapsed
    assert clock.spinner.won > waits // 20


def test_an_empty_bucket_is_filled_to_the_half_before_it_is_used_again() -> None:
    clock = Clock(LIMIT, 0.05)
    looked = [clock.wait(20 * US) for _ in range(5_000)]
    starts = [n for n in range(1, len(looked)) if looked[n] and not looked[n - 1]]
    assert len(starts) > 2
    for start in starts[1:-1]:
        assert sum(looked[start : start + 20]) == 20


@settings(deadline=None)
@given(
    st.integers(0, MS),
    st.sampled_from([0.001, 0.05, 0.5, 1.0]),
    st.integers(0, 2**32),
    st.lists(
        st.tuples(st.sampled_from(["late", "early", "never", "stolen"]), st.integers(0, 5 * MS)), max_size=300
    ),
)
def test_no_peer_makes_it_spin_above_its_share(limit: int, share: float, seed: int, lies: list) -> None:
    """The other side sees how long we look, and answers when that costs us most."""
    clock, rng = Clock(limit, share), random.Random(seed)
    for kind, span in lies * 3:
        budget = clock.spinner.budget(clock.now)
        if kind == "stolen" and budget:  # another process took the processor
            clock.now += span + budget
            clock.spinner.seen(rng.random() < 0.5, clock.now, budget)
        elif kind == "never":
            clock.wait(span + budget)
        else:
            clock.wait(max(0, budget - 1) if kind == "late" else span // 1000)
        assert clock.spinner.spun <= BURST + share * (clock.now - clock.start) + 1


def test_changing_the_limit_gives_no_second_burst() -> None:
    clock = Clock(LIMIT, 0.001)
    for n in range(10_000):
        if n % 10 == 0:
            clock.spinner.set(LIMIT + n, 0.001, clock.now)
        clock.wait(10 * US, wake=0)
    assert clock.spinner.spun <= BURST + 0.001 * (clock.now - clock.start)


@pytest.mark.parametrize(
    ("limit", "share"), [(-1, 0.5), (MS + 1, 0.5), (0, 0.0), (0, -1.0), (0, 1.1), (0, math.nan)]
)
def test_impossible_bounds_are_refused(limit: int, share: float) -> None:
    with pytest.raises(ValueError, match=r"spin|share"):
        Spinner().set(limit, share, 1)
