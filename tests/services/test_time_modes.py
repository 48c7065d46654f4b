# SPDX-License-Identifier: Apache-2.0
"""What becomes of the host's time: nothing (observe), a sample for who keeps the clock (feed), a set clock (step)."""

from __future__ import annotations

from typing import Any

import pytest

from hvring.errors import EffectError
from hvring.events import Event, EventKind
from hvring.guest.clock import Steady
from hvring.guest.disciplines import Discipline
from hvring.guest.holders import Holder
from hvring.guest.time_feed import FeedSample
from hvring.ic import MessageType, SampleFlag, TimeSampleV4
from hvring.ic.timesync import from_unix_ns
from hvring.reasons import Reason
from hvring.services import TimeSync

SECOND = 10**9
SAMPLE, SYNC = SampleFlag.SAMPLE, SampleFlag.SYNC
CHRONY = Discipline((Holder(7, "chronyd", "chrony.service"),))


class Pair:
    """A host and a guest that is its clock, its feed and its keeper; both clocks agree and stand unless told to."""

    def __init__(self, packet, monotonic, **settings: Any) -> None:
        self.host = self.guest = 10**6 * SECOND
        self.set_to: list[int] = []
        self.given: list[FeedSample] = []
        self.takes = True
        self.keeper: Discipline | None = None
        self.has_counter = True
        self.counter = 0.0  # seconds of the reference counter beside the steady clock
        self.slewed = 0.0  # seconds that the monotonic clock was kept back
        self.suspended = 0.0
        self.events: list[Event] = []
        self._packet = packet
        self._monotonic = monotonic
        self.service = TimeSync(
            self,
            feed=self,
            discipline=lambda: self.keeper,
            monotonic=monotonic,
            steady=lambda: Steady(monotonic.now + self.slewed, self.suspended),
            **settings,
        )
        self.service.on_event = self.events.append

    def now(self) -> int:
        return self.guest

    def reference(self) -> int | None:
        return int((self._monotonic.now + self.counter) * 10**7) if self.has_counter else None

    def set(self, unix_ns: int) -> None:
        self.set_to.append(unix_ns)
        self.guest = unix_ns

    def give(self, sample: FeedSample) -> None:
        if not self.takes:
            raise EffectError("nobody is there", reason=Reason.FEED_UNREACHABLE)
        self.given.append(sample)

    def stands_still(self, seconds: float) -> None:
        self.host += int(seconds * SECOND)

    def hears(
        self, flags: SampleFlag = SAMPLE, *, after: float = 5.0, lie: float = 0.0, leap: int = 0
    ) -> None:
        for clock in ("host", "guest"):
            setattr(self, clock, getattr(self, clock) + int(after * SECOND))
        self._monotonic.now += after
        stamp = from_unix_ns(self.host + int(lie * SECOND))
        sample = TimeSampleV4(stamp, int((self._monotonic.now + self.counter) * 10**7), flags, leap=leap)
        assert self.service.receive(self._packet(MessageType.TIMESYNC, sample.encode(), (4, 0))) is not None

    def told(self, kind: EventKind) -> list[Event]:
        return [event for event in self.events if event.kind is kind]


@pytest.fixture
def pair(packet, monotonic):
    def make(mode: str, **settings: Any) -> Pair:
        return Pair(packet, monotonic, mode=mode, **settings)

    return make


def test_observe_measures_and_does_nothing_else(pair) -> None:
    machine = pair("observe")
    machine.stands_still(3600)
    for flags in (SYNC, SAMPLE, SAMPLE, SAMPLE, SAMPLE):
        machine.hears(flags)
    assert (machine.set_to, machine.given, machine.events) == ([], [], [])
    assert machine.service.facts()["offset_ns"] == 3600 * SECOND


def test_the_bias_is_the_middle_of_the_newest_offsets_since_the_last_pause(pair) -> None:
    machine = pair("observe")
    assert machine.service.facts()["bias_ns"] is None
    for lie in (0.1, 0.1, 0.4, 0.1, -0.7):
        machine.hears(lie=lie)
    assert machine.service.facts()["bias_ns"] == SECOND // 10
    for _ in range(60):
        machine.hears(lie=0.2)
    assert machine.service.facts()["bias_ns"] == SECOND // 5
    machine.stands_still(100)
    machine.hears(lie=0.2)
    assert machine.service.facts()["bias_ns"] == 100 * SECOND + SECOND // 5
    machine.service.reset()
    assert machine.service.facts()["bias_ns"] is None


@pytest.mark.parametrize(
    "settings",
    [
        {"mode": "stepping"},
        {"mode": "feed", "feed": None},
        {"step_limit": 0.0},
        {"step_limit": -1.0},
        {"feed_uncertainty": 0},
        {"feed_uncertainty": float("nan")},
    ],
)
def test_what_cannot_be_is_refused_at_once(clock, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"no mode|no time above 0"):
        TimeSync(clock, **settings)


# ------------------------------------------------------------------------------------------ step


@pytest.mark.parametrize("away", [-50.0, 50.0])
def test_sync_sets_the_clock_within_the_limit_and_says_by_how_much(pair, away: float) -> None:
    machine = pair("step", step_limit=60.0)
    machine.stands_still(away)
    machine.hears(SYNC)
    assert machine.set_to == [machine.host]
    (changed,) = machine.told(EventKind.CHANGED)
    assert changed.facts == {"seconds": away, "paused": 0.0, "sync": True}


@pytest.mark.parametrize("away", [-61.0, 61.0])
def test_beyond_the_limit_it_is_refused_told_once_and_counted(pair, away: float) -> None:
    machine = pair("step", step_limit=60.0)
    machine.stands_still(away)
    for _ in range(5):
        machine.hears(SYNC)
    assert machine.set_to == []
    (refused,) = machine.told(EventKind.REFUSED)
    assert refused.facts["reason"] == "step_too_large"
    assert (refused.facts["seconds"], refused.facts["limit"]) == (away, 60.0)
    assert machine.service.counters.failures == {"step_too_large": 5}
    assert machine.service.facts()["refusal"] == "step_too_large"


def test_a_pause_beyond_the_limit_is_refused_too(pair) -> None:
    machine = pair("step", step_limit=60.0)
    machine.hears()
    machine.stands_still(3600)
    machine.hears()
    assert machine.set_to == []
    assert len(machine.told(EventKind.REFUSED)) == 1


def test_who_keeps_the_clock_is_left_alone_and_named_once(pair) -> None:
    machine = pair("step")
    machine.keeper = CHRONY
    machine.stands_still(30)
    for _ in range(3):
        machine.hears(SYNC)
    assert machine.set_to == []
    (refused,) = machine.told(EventKind.REFUSED)
    assert refused.facts["who"] == "chronyd (process 7, chrony.service)"
    assert refused.facts["reason"] == "clock_kept"
    assert "+30.000000 s" in refused.detail
    assert machine.service.facts()["refusal"] == "clock_kept"
    assert machine.service.last_failure is None  # nothing is wrong


def test_when_the_keeper_has_gone_sync_sets_the_clock_and_the_next_refusal_is_news(pair) -> None:
    machine = pair("step")
    machine.keeper = CHRONY
    machine.hears(SYNC)
    machine.keeper = None
    machine.hears(SYNC)
    assert len(machine.set_to) == 1
    assert machine.service.facts()["refusal"] is None
    machine.keeper = CHRONY
    machine.hears(SYNC)
    assert len(machine.told(EventKind.REFUSED)) == 2


@pytest.mark.parametrize("flags", [SYNC, SAMPLE])
def test_after_a_pause_the_clock_is_set_beside_who_keeps_it(pair, flags: SampleFlag) -> None:
    machine = pair("step")
    machine.keeper = CHRONY
    machine.hears()
    machine.stands_still(3600)
    machine.hears(flags)
    assert machine.set_to == [machine.host]
    machine.hears(flags)
    assert len(machine.set_to) == 1


def test_a_short_pause_is_left_to_who_keeps_the_clock(pair) -> None:
    machine = pair("step")
    machine.keeper = CHRONY
    machine.hears()
    machine.stands_still(3)
    machine.hears(SYNC)
    assert machine.set_to == []


# ------------------------------------------------------------------------------------------ feed


def test_what_goes_together_is_given_on_with_all_that_is_known(pair) -> None:
    machine = pair("feed")
    machine.stands_still(-7)
    machine.hears(SYNC)
    machine.hears()
    assert machine.given == []
    machine.hears(leap=1)
    assert machine.given == [FeedSample(machine.guest, -7 * SECOND, 100, 1)]
    assert machine.set_to == []
    facts = machine.service.facts()
    assert (facts["fed"], facts["held_back"], facts["leap"]) == (1, 2, 1)


def test_behind_a_pause_nothing_is_given_on_until_three_messages_agree(pair) -> None:
    machine = pair("feed")
    for _ in range(4):
        machine.hears()
    machine.given.clear()
    machine.stands_still(3600)
    machine.hears()
    machine.hears()
    assert machine.given == []
    machine.hears()
    assert [sample.offset_ns for sample in machine.given] == [3600 * SECOND]


def test_what_came_before_this_machine_was_suspended_is_not_given_on_after_it(pair) -> None:
    machine = pair("feed")
    for _ in range(4):
        machine.hears()
    machine.given.clear()
    machine.suspended += 3600
    machine.counter += 3600
    machine.stands_still(3600)
    machine.hears(lie=-3600)  # it was in the ring meanwhile
    for _ in range(5):
        machine.hears()
    assert {sample.offset_ns for sample in machine.given} == {3600 * SECOND}


def test_a_message_that_lies_is_not_given_on_nor_are_the_next_two(pair) -> None:
    machine = pair("feed")
    for _ in range(3):
        machine.hears()
    machine.given.clear()
    for lie in (-0.5, 0, 0):
        machine.hears(lie=lie)
    assert machine.given == []
    machine.hears()
    assert [sample.offset_ns for sample in machine.given] == [0]


@pytest.mark.parametrize("leap", [3, 4, 255])
def test_a_host_that_nobody_keeps_right_is_not_given_on_and_told_once(pair, leap: int) -> None:
    machine = pair("feed")
    for _ in range(6):
        machine.hears(leap=leap)
    assert machine.given == []
    (refused,) = machine.told(EventKind.REFUSED)
    assert (refused.facts["reason"], refused.facts["leap"]) == ("host_unsynchronized", leap)
    assert machine.service.last_failure.over_at is None
    machine.hears()
    assert len(machine.given) == 1
    assert machine.service.facts()["refusal"] is None
    assert machine.service.last_failure.over_at is not None


def test_without_the_counter_a_sample_is_not_given_on_unless_that_is_allowed(pair) -> None:
    """It may have waited since the one before; the error is on one side only, and not halved."""
    for limit, expected in ((0.1, 0), (5.0, 4)):
        machine = pair("feed", feed_uncertainty=limit)
        machine.has_counter = False
        for _ in range(6):
            machine.hears()
        assert len(machine.given) == expected
        assert len(machine.told(EventKind.REFUSED)) == (expected == 0)
        assert all((one.offset_ns, one.uncertainty_ns) == (0, 5 * SECOND) for one in machine.given)


def test_a_feed_that_is_not_there_is_tried_with_each_sample_and_told_once(pair) -> None:
    machine = pair("feed")
    machine.takes = False
    for _ in range(6):
        machine.hears()
    machine.takes = True
    machine.hears()
    assert [event.kind for event in machine.events] == [EventKind.FAILED, EventKind.RECOVERED]
    assert len(machine.given) == 1
    assert machine.service.counters.failures == {"feed_unreachable": 4}


def test_another_channel_begins_anew(pair) -> None:
    machine = pair("feed")
    for _ in range(3):
        machine.hears()
    machine.service.reset()
    machine.hears()
    machine.hears()
    assert len(machine.given) == 1


# ------------------------------------------------------------------------------------------ pauses


def test_a_suspended_machine_is_seen_by_the_kernels_clocks_when_the_message_is_old(pair) -> None:
    machine = pair("observe")
    machine.hears()
    machine.suspended += 30
    machine.counter += 30
    machine.stands_still(30)
    machine.hears(lie=-30)
    machine.hears()
    (paused,) = machine.told(EventKind.PAUSED)  # and the host's time does not show another one
    assert paused.facts == {"seconds": 30.0, "seen_by": "kernel"}
    assert machine.service.pauses == 1


@pytest.mark.parametrize(("jump", "seconds"), [(30.0, 30.0), (-1000.0, None)])
def test_a_counter_that_jumps_shows_a_pause(pair, jump: float, seconds: float | None) -> None:
    """It goes on in a guest that was suspended, and begins anew in another VM."""
    machine = pair("observe")
    machine.counter = 5000.0
    machine.hears()
    machine.counter += jump
    machine.hears()
    (paused,) = machine.told(EventKind.PAUSED)
    assert paused.facts["seen_by"] == "counter"
    assert paused.facts["seconds"] == (None if seconds is None else pytest.approx(seconds))


def test_a_kernel_that_saw_the_pause_lets_a_sample_set_the_clock(pair) -> None:
    """Without the counter a pause as long as a message may wait does not show in the host's time."""
    machine = pair("step")
    machine.has_counter = False
    for _ in range(3):
        machine.hears(after=60.0)
    machine.suspended += 30
    machine.stands_still(30)
    machine.hears(after=60.0)
    assert machine.set_to == [machine.host]
    assert [event.facts["seen_by"] for event in machine.told(EventKind.PAUSED)] == ["kernel"]


def test_nothing_is_seen_where_the_clocks_go_on(pair) -> None:
    machine = pair("observe")
    for n in range(200):
        machine.guest += (n % 7) * SECOND  # somebody here sets the clock, again and again
        machine.host += 2_000_000  # 400 ppm
        machine.hears(after=5.0 if n % 10 else 300.0)
    assert machine.told(EventKind.PAUSED) == []


def test_a_keeper_that_slews_is_no_pause(packet, monotonic) -> None:
    """chrony may have CLOCK_MONOTONIC, by which ages are counted, go 8 % slower for a while."""
    machine = Pair(packet, monotonic, mode="observe")
    for _ in range(20):
        machine.slewed += 4.8
        machine.counter += 4.8
        machine.host += int(4.8 * SECOND)
        machine.hears(after=55.2)
    assert machine.told(EventKind.PAUSED) == []
