# SPDX-License-Identifier: Apache-2.0
"""The agent's side of a freeze, over processes that are played by the test."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from hvring.errors import EffectError
from hvring.guest import guarded, guardian
from hvring.guest.guarded import STEPS, GuardedFreeze, State, Timeouts
from hvring.guest.launch import PLAIN
from hvring.guest.mounts import Filesystem, Mount
from hvring.guest.witness import Event, Heard
from hvring.pending import Pending

TWO = tuple(Filesystem((Mount(n, f"8:{n}", f"/{n}", "ext4", f"/dev/sd{n}", False),)) for n in range(2))


class PlayedWitness:
    """Says what the test says, and knows what was asked of it."""

    def __init__(self) -> None:
        self.has_family = self.has_rescue = self.is_closed = False
        self.orders: list[bytes] = []
        self.killed = 0
        self.said: list[Heard] = []
        self.rescues: list[dict[int, int]] = []

    def start(self, *_: object) -> None:
        self.has_family = True

    def rescue(self, mounts: Mapping[int, int]) -> None:
        self.has_rescue = True
        self.rescues.append(dict(mounts))

    def order(self, order: bytes) -> None:
        self.orders.append(order)

    def kill(self) -> None:
        self.killed += 1

    def kill_rescue(self) -> None:
        self.said.append(Heard(Event.FELL))

    def hear(self) -> Heard | None:
        if not self.said:
            return None
        heard = self.said.pop(0)
        if heard.event is Event.GONE:
            self.has_family = False
        if heard.event in (Event.RESCUED, Event.FELL):
            self.has_rescue = False
        return heard

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        self.is_closed = True


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


class Scene:
    """One freeze of two mounts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = Clock()
        monkeypatch.setattr(guarded, "time", self.clock)
        monkeypatch.setattr(guarded, "Witness", PlayedWitness)
        self.freeze = GuardedFreeze(TWO, Timeouts(), [PLAIN])
        self.witness: Any = self.freeze._witness
        self.work = self.freeze.freeze()

    def hear(self, *events: Event, **more: int) -> None:
        self.witness.said += [Heard(event, **more) for event in events]
        self.freeze.look()

    def open(self) -> None:
        self.hear(Event.READY, index=1)
        for index in range(2):
            self.hear(Event.OPENED, index=index, descriptor=os.open("/dev/null", os.O_RDONLY))

    def reach(self, state: State) -> None:
        """By the shortest way."""
        match state:
            case State.STARTING:
                return
            case State.OPENING:
                self.hear(Event.READY, index=1)
            case State.WRITING:
                self.open()
            case State.FREEZING:
                self.open()
                self.hear(Event.FREEZING)
            case State.FROZEN:
                self.reach(State.FREEZING)
                self.hear(Event.FROZEN)
            case State.THAWING:
                self.reach(State.FROZEN)
                self.freeze.thaw(25.0)
            case State.RESCUING:
                self.reach(State.FROZEN)
                self.hear(Event.DEAD)
            case State.ENDING:
                self.reach(State.RESCUING)
                self.hear(Event.RESCUED)
        assert self.freeze.state is state

    def wait(self) -> None:
        self.clock.now = self.freeze._until
        self.freeze.look()


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Scene]:
    return lambda: Scene(monkeypatch)


#: What is enough to call everything clear, once something may be frozen.
ENOUGH = {(State.ENDING, Event.GONE)}
ORDERED = [State.WRITING, State.FREEZING, State.FROZEN, State.THAWING, State.RESCUING, State.ENDING]


@pytest.mark.parametrize("state", ORDERED)
def test_nothing_that_may_be_frozen_is_called_clear_too_early(
    state: State, scene: Callable[[], Scene]
) -> None:
    for event in Event:
        if event in (Event.OPENED, Event.FOREIGN, Event.LEFT_OUT):
            continue  # about one mount, below
        here = scene()
        here.reach(state)
        here.hear(event, index=0)
        assert (here.freeze.state is State.CLEAR) == ((state, event) in ENOUGH), event


@pytest.mark.parametrize("state", ORDERED)
def test_from_everywhere_there_is_a_way_to_clear(state: State, scene: Callable[[], Scene]) -> None:
    """By time alone and what the processes do then: the guardian may stand still, be killed, or be all right."""
    for first, guardian_is in itertools.product(Event, ("well", "stopped", "killed")):
        if first in (Event.OPENED, Event.FOREIGN, Event.LEFT_OUT):
            continue
        here = scene()
        here.reach(state)
        here.hear(first, index=0)
        thaw = here.freeze.thaw(1000.0)
        for _ in range(20):
            if here.freeze.state is State.CLEAR:
                break
            if guardian_is == "killed" and here.witness.has_family:
                here.hear(Event.DEAD)
            if guardian_is == "well" and here.freeze.state is State.THAWING:
                here.hear(Event.CLEAR)
            if here.witness.has_rescue:
                here.hear(Event.RESCUED)
            killed = here.witness.killed
            here.wait()
            if (
                here.witness.killed > killed or guardian_is != "stopped"
            ) and here.freeze.state is State.ENDING:
                here.hear(Event.GONE)
        assert here.freeze.state is State.CLEAR, (first, guardian_is)
        if isinstance(thaw, Pending):
            assert thaw.resume() is None
        assert here.witness.is_closed


def test_a_mount_that_somebody_else_has_frozen_is_never_thawed(scene: Callable[[], Scene]) -> None:
    for state in (State.FREEZING, State.THAWING):
        here = scene()
        here.reach(State.FREEZING)
        if state is State.THAWING:
            here.freeze.thaw(25.0)
        here.hear(Event.FOREIGN, index=0)
        here.hear(Event.DEAD)
        assert [list(mounts) for mounts in here.witness.rescues] == [[1]]


def test_a_freeze_that_was_under_way_when_its_process_was_killed_is_looked_at_again(
    scene: Callable[[], Scene],
) -> None:
    here = scene()
    here.reach(State.FREEZING)
    here.hear(Event.DEAD, Event.RESCUED)
    assert here.freeze.state is State.ENDING
    assert here.freeze.may_hold  # the child may be in the middle of it
    here.hear(Event.GONE)
    assert here.freeze.state is State.RESCUING
    here.hear(Event.RESCUED)
    assert here.freeze.state is State.CLEAR
    assert len(here.witness.rescues) == 2


def test_what_does_not_thaw_is_named_and_stays_possible_to_hold(scene: Callable[[], Scene]) -> None:
    here = scene()
    here.reach(State.FROZEN)
    thaw = here.freeze.thaw(25.0)
    here.hear(Event.HELD, index=1, error=5)
    here.clock.now += 25
    assert isinstance(thaw, Pending)
    with pytest.raises(EffectError, match=r"cannot thaw /1 \(/dev/sd1, ext4\): Input/output error"):
        thaw.resume()
    assert here.freeze.may_hold


def test_a_descriptor_that_comes_too_late_is_closed(scene: Callable[[], Scene]) -> None:
    here = scene()
    here.reach(State.OPENING)
    here.freeze.thaw(25.0)
    late = os.open("/dev/null", os.O_RDONLY)
    here.hear(Event.OPENED, index=0, descriptor=late)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(late)


def test_every_word_of_the_guardian_is_an_event() -> None:
    words = {
        value
        for name, value in vars(guardian).items()
        if name.isupper()
        and isinstance(value, bytes)
        and not name.startswith("_")
        and name not in ("FREEZE", "THAW", "HERE")
    }
    assert words == {event.value for event in Event if isinstance(event.value, bytes)}
    assert {state for state, _ in STEPS} == set(State) - {State.CLEAR}


@pytest.mark.parametrize("why", ["not apart", "late"])
def test_what_one_that_is_left_still_says_does_not_break_the_freeze_off(
    scene: Callable[[], Scene], why: str
) -> None:
    here = scene()
    here.freeze._ways = [PLAIN]
    if why == "late":
        here.wait()
    late = os.open("/dev/null", os.O_RDONLY)
    here.hear(Event.READY, index=0)
    here.hear(Event.READY, index=1)
    here.hear(Event.OPENED, index=1, descriptor=late)
    assert here.freeze.state is State.LEAVING
    assert here.witness.killed
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(late)
    here.hear(Event.DEAD, Event.GONE)
    assert here.freeze.state is State.STARTING
    here.open()
    here.hear(Event.FREEZING, Event.FROZEN)
    assert isinstance(here.work, Pending)
    assert here.work.resume() is None
    assert here.freeze.was_complete


@pytest.mark.parametrize("others", ["gone", "stopped"])
def test_a_rescue_that_is_stopped_gives_way_to_another_one(scene: Callable[[], Scene], others: str) -> None:
    """It says each second what would not thaw: one that says nothing for long does nothing."""
    here = scene()
    here.reach(State.FROZEN)
    here.hear(Event.DEAD)
    if others == "gone":
        here.hear(Event.GONE)
    here.hear(Event.HELD, index=0, error=11)
    for _ in range(guarded._SILENCES - 1):
        here.wait()
    here.hear(Event.HELD, index=0, error=11)
    for _ in range(guarded._SILENCES - 1):
        here.wait()
    assert len(here.witness.rescues) == 1
    here.wait()
    assert len(here.witness.rescues) == 2
    assert here.freeze.state is State.RESCUING
    assert here.freeze.may_hold
    here.hear(Event.RESCUED)
    if others == "stopped":
        here.wait()
        assert here.witness.killed
        here.hear(Event.GONE)
    assert here.freeze.state is State.CLEAR
