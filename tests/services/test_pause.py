# SPDX-License-Identifier: Apache-2.0
"""A SAMPLE as SYNC: only after a pause, only forwards, and rarely (pitfall 67)."""

from __future__ import annotations

import random

import pytest

from hvring.events import Event, EventKind
from hvring.guest.clock import Steady
from hvring.ic import MessageType, SampleFlag, TimeSampleV4
from hvring.ic.timesync import from_unix_ns
from hvring.services import TimeSync
from hvring.services.pause import REST, THRESHOLD

SECOND = 10**9
SAMPLE, SYNC, PROBE = SampleFlag.SAMPLE, SampleFlag.SYNC, SampleFlag(0)
INTERVAL = 5.0  # seconds from one sample to the next


class Machine:
    """A host and a guest, each with its clock; ``counter``: whether the guest can read its reference counter."""

    def __init__(self, packet, monotonic, counter=True, **settings):
        self.host = 10**6 * SECOND
        self.guest = self.host
        self.set_to: list[int] = []
        self.broken = False
        self._packet = packet
        self._monotonic = monotonic
        self._counter = counter
        self.suspended = 0.0
        usual = {
            "mode": "step",
            "monotonic": monotonic,
            "steady": lambda: Steady(monotonic.now, self.suspended),
        }
        self.service = TimeSync(self, **{**usual, **settings})
        self.events: list[Event] = []
        self.service.on_event = self.events.append

    def now(self):
        return self.guest

    def reference(self):
        return int(self._monotonic.now * 10**7) if self._counter else None

    def set(self, unix_ns):
        if self.broken:
            raise PermissionError("not permitted")
        self.set_to.append(unix_ns)
        self.guest = unix_ns

    def passes(self, seconds):
        self.pauses(seconds)
        self._monotonic.now += seconds
        self.guest += int(seconds * SECOND)

    def pauses(self, seconds):
        """The host goes on alone."""
        self.host += int(seconds * SECOND)

    def stamped(self, flags=SAMPLE, lie=0.0):
        """A message with the host's time of now, to be taken now or later."""
        stamp = from_unix_ns(self.host + int(lie * SECOND))
        reference = int(self._monotonic.now * 10**7)
        return self._packet(MessageType.TIMESYNC, TimeSampleV4(stamp, reference, flags).encode(), (4, 0))

    def takes(self, message):
        assert self.service.receive(message) is not None

    def hears(self, flags=SAMPLE, lie=0.0, after=INTERVAL):
        self.passes(after)
        self.takes(self.stamped(flags, lie))


@pytest.fixture(params=[True, False], ids=["counter", "no counter"])
def machine(request, packet, monotonic):
    made = Machine(packet, monotonic, counter=request.param)
    made.hears()
    made.hears()
    return made


@pytest.fixture
def make(packet, monotonic):
    def make(**settings):
        made = Machine(packet, monotonic, **settings)
        made.hears()
        made.hears()
        return made

    return make


def test_after_a_pause_the_first_sample_sets_the_clock_and_says_why(machine):
    machine.pauses(3600)
    machine.hears()
    assert machine.set_to == [machine.host]
    paused, changed = machine.events
    assert (paused.kind, changed.kind) == (EventKind.PAUSED, EventKind.CHANGED)
    assert paused.facts["seen_by"] == "host"
    detail = changed.detail
    assert detail.startswith("the clock was set by +3600.000000 s: this machine stood still for 3")
    assert "no SYNC came" in detail
    for _ in range(50):
        machine.hears()
    assert len(machine.set_to) == 1


def test_a_year_off_without_a_pause_is_left_alone(machine):
    """It was so from the beginning, or somebody here wanted it so."""
    machine.guest -= 365 * 86400 * SECOND
    for _ in range(100):
        machine.hears()
    assert machine.set_to == []


def test_drift_never_sets_the_clock(machine):
    for _ in range(2000):
        machine.host += 5_000_000  # a thousand ppm
        machine.hears()
    assert machine.service.measurement.offset_ns == 10 * SECOND
    assert machine.set_to == []


def test_a_guest_ahead_of_its_host_is_never_set_back(machine):
    machine.pauses(-3600)
    for _ in range(100):
        machine.hears()
    assert machine.set_to == []


def test_a_host_that_goes_back_is_not_followed(machine):
    machine.guest -= 100 * SECOND  # by somebody here
    machine.pauses(-30)
    for _ in range(100):
        machine.hears()
    assert machine.set_to == []


@pytest.mark.parametrize("lie", [-7.0, -3600.0])
@pytest.mark.parametrize("behind", [0, 10])
def test_a_sample_that_was_too_early_makes_no_pause_of_the_next(machine, behind, lie):
    machine.guest -= behind * SECOND  # by somebody here
    machine.hears(lie=lie)
    for _ in range(20):
        machine.hears()
    assert machine.set_to == []


def test_a_host_that_runs_away_is_followed_as_rarely_as_any(machine, monotonic):
    """It may as well send SYNC."""
    began = monotonic.now
    for n in range(100):
        machine.hears(lie=100.0 * n)
    assert 1 <= len(machine.set_to) <= (monotonic.now - began) / REST + 1


def test_what_was_queued_together_sets_the_clock_once(machine):
    machine.pauses(3600)
    machine.passes(INTERVAL)
    for _ in range(10):
        machine.takes(machine.stamped())
        machine.passes(0.05)
    assert len(machine.set_to) == 1


def test_a_sample_from_before_the_pause_is_stale_and_not_used(machine):
    machine.passes(INTERVAL)
    stale = machine.stamped()
    machine.pauses(3600)
    machine.takes(stale)
    assert machine.set_to == []
    machine.hears()
    assert machine.set_to == [machine.host]


def test_who_sets_the_clock_meanwhile_is_let_have_it(machine):
    machine.pauses(3600)
    machine.hears(PROBE)
    machine.guest = machine.host - 4 * SECOND
    for _ in range(20):
        machine.hears()
    assert machine.set_to == []


def test_a_sync_comes_first_and_leaves_nothing_to_do(machine):
    machine.pauses(3600)
    machine.hears(SYNC)
    assert machine.set_to == [machine.host]
    machine.guest -= 3600 * SECOND  # by somebody here
    for _ in range(20):
        machine.hears()
    assert len(machine.set_to) == 1


def test_a_probe_shows_a_pause_but_does_not_set_the_clock(machine):
    machine.pauses(3600)
    machine.hears(PROBE)
    machine.hears(PROBE)
    assert machine.set_to == []
    machine.hears()
    assert machine.set_to == [machine.host]


@pytest.mark.parametrize("settings", [{"mode": "observe"}, {"implicit_sync": None}])
def test_not_without_leave(make, settings):
    machine = make(**settings)
    machine.pauses(3600)
    for _ in range(20):
        machine.hears()
    assert machine.set_to == []
    assert machine.service.measurement.offset_ns == 3600 * SECOND


@pytest.mark.parametrize(
    ("threshold", "pause", "sets"), [(5.0, 4.9, 0), (5.0, 5.1, 1), (60.0, 59.0, 0), (60.0, 61, 1)]
)
def test_the_threshold_is_a_setting(make, threshold, pause, sets):
    machine = make(implicit_sync=threshold)
    machine.pauses(pause)
    machine.hears()
    machine.hears()
    assert len(machine.set_to) == sets


def test_several_short_pauses_count_together(make):
    machine = make()
    for _ in range(2):
        machine.pauses(3)
        machine.hears()
    machine.hears()
    assert len(machine.set_to) == 1


@pytest.mark.parametrize("threshold", [0, -1, float("nan"), float("inf")])
def test_a_threshold_that_is_none_is_refused(clock, threshold):
    with pytest.raises(ValueError, match="no time above 0"):
        TimeSync(clock, implicit_sync=threshold)


def test_pauses_in_a_row_set_the_clock_once_in_a_while(make, monotonic):
    machine = make()
    began = monotonic.now
    for _ in range(200):
        machine.pauses(30)
        machine.hears()
        machine.hears()
    assert 2 <= len(machine.set_to) <= (monotonic.now - began) / REST + 1


def test_a_clock_that_cannot_be_set_is_tried_again_after_a_rest(make, monotonic):
    machine = make()
    machine.broken = True
    machine.pauses(3600)
    for _ in range(int(2 * REST / INTERVAL)):
        machine.hears()
    assert machine.service.counters.effect_errors == 2
    machine.broken = False
    for _ in range(int(REST / INTERVAL) + 1):
        machine.hears()
    assert len(machine.set_to) == 1


def test_a_late_reading_is_no_pause(make):
    """Without the counter a message that lay in the ring looks like one of a host that stood still."""
    machine = make(counter=False)
    machine.guest -= 10 * SECOND  # by somebody here
    for _ in range(3):
        late = machine.stamped()
        machine.passes(4.0)
        machine.takes(late)
    for _ in range(20):
        machine.hears()
    assert machine.set_to == []


def test_a_machine_that_was_offered_another_channel_after_the_pause_is_not_left_behind(make):
    machine = make()
    machine.hears()
    machine.service.reset()
    machine.pauses(3600)
    machine.hears()
    assert machine.set_to == [machine.host]


def test_the_first_sample_of_all_is_compared_with_nothing(packet, monotonic):
    machine = Machine(packet, monotonic)
    machine.guest -= 3600 * SECOND
    machine.hears()
    assert machine.set_to == []


def test_whatever_a_host_says_it_sets_the_clock_forwards_and_rarely(make, monotonic):
    """Random episodes: what is set is what the host said then, forwards, and never twice within the rest."""
    dice = random.Random(67)
    machine = make()
    last = None
    for _ in range(5000):
        if dice.random() < 0.05:
            machine.pauses(dice.choice([0.5, 2, 10, 86400, -10]))
        lie = dice.choice([0, 0, 0, 0, 0, 0, 0.3, -7, 50, -1e6, 1e9])
        before, known = machine.guest, len(machine.set_to)
        step = dice.choice([0, 0.01, 1, 5, 5, 60])
        machine.hears(dice.choice([SAMPLE, SAMPLE, PROBE]), lie, step)
        if len(machine.set_to) > known:
            assert machine.set_to[-1] - before >= THRESHOLD * SECOND
            assert last is None or monotonic.now - last >= REST
            last = monotonic.now
    assert last is not None


def test_whatever_stands_still_is_seen_once_and_nothing_else_is(packet, monotonic):
    """Random episodes of pauses, suspends, settings of the clock, drift and late messages: each pause has its event."""
    dice = random.Random(68)
    machine = Machine(packet, monotonic, mode="observe")
    for _ in range(3):
        machine.hears()
    pauses = 0
    for _ in range(3000):
        machine.host += dice.randrange(-2_000_000, 2_000_000)  # 400 ppm
        match dice.randrange(40):
            case 0:
                machine.pauses(dice.choice([1.5, 30, 86400]))
                pauses += 1
            case 1:
                seconds = dice.choice([1.5, 30, 86400])
                machine.suspended += seconds
                machine.pauses(seconds)
                pauses += 1
            case 2:
                machine.guest += dice.choice([-86400, -1, 1, 10**6]) * SECOND
            case 3:
                late = machine.stamped()
                machine.passes(dice.choice([0.1, 4.0]))
                machine.takes(late)
        machine.hears()
        assert machine.service.pauses == pauses
