# SPDX-License-Identifier: Apache-2.0
"""Backup over a freezer that takes its time: what is under way is asked for again, broken off, and always ended."""

from __future__ import annotations

import itertools

import pytest

from hvring.errors import EffectBusyError, EffectError
from hvring.ic import MessageType, Status, VssOperation, VssRequest
from hvring.services import Later, Vss
from hvring.services.vss import FREEZE_PATIENCE, MAX_FROZEN, RETRY, STEP, THAW_PATIENCE

FREEZE, THAW = VssOperation.FREEZE, VssOperation.THAW


class ScriptedFreezer:
    """Is at its work until the test says that it is done, or has failed."""

    ready = True

    def __init__(self):
        self.work = None  # what is under way: "freeze", "thaw" or nothing
        self.frozen = False
        self.calls = []  # what was begun
        self.outcome = None  # True: done; an error: failed; None: still at work

    def freeze(self):
        if self.work == "thaw":
            self.thaw()
        if self.work is None:
            if self.frozen:
                return
            self._begin("freeze")
        self._go_on(frozen=True)

    def thaw(self):
        if self.work != "thaw":
            if self.work is None and not self.frozen:
                return
            self._begin("thaw")
        self._go_on(frozen=False)

    @property
    def idle(self):
        return self.work is None and not self.frozen

    def _begin(self, work):
        self.calls.append(work)
        self.work, self.outcome = work, None

    def _go_on(self, frozen):
        if self.outcome is None:
            raise EffectBusyError("at work")
        outcome, self.work, self.outcome = self.outcome, None, None
        if outcome is True:
            self.frozen = frozen
            return
        self.frozen = False if frozen else self.frozen
        raise outcome


@pytest.fixture
def freezer():
    return ScriptedFreezer()


@pytest.fixture
def service(freezer, monotonic):
    return Vss(freezer, monotonic=monotonic)


@pytest.fixture
def send(service, packet):
    return lambda operation: service.receive(packet(MessageType.VSS, VssRequest(operation).encode()))


def test_a_freeze_is_answered_once_it_is_complete(service, send, freezer, status_of):
    answer = send(FREEZE)
    assert isinstance(answer, Later)
    assert answer.seconds == STEP
    assert isinstance(answer := answer.again(), Later)
    assert service.counters.replies == 0
    freezer.outcome = True
    assert status_of(answer.again()) == Status.OK
    assert service.deadline() == MAX_FROZEN
    assert freezer.calls == ["freeze"]
    assert service.counters.replies == 1


def test_a_freeze_that_fails_in_the_end_says_so(service, send, freezer, status_of):
    answer = send(FREEZE)
    freezer.outcome = EffectError("no", 0x80070015)
    assert status_of(answer.again()) == 0x80070015
    assert service.deadline() is None
    assert service.counters.effect_errors == 1
    assert status_of(send(THAW)) == Status.OK


def test_a_thaw_is_answered_once_it_is_complete(service, send, freezer, status_of):
    freeze = send(FREEZE)
    freezer.outcome = True
    freeze.again()
    answer = send(THAW)
    assert isinstance(answer, Later)
    assert service.deadline() == pytest.approx(STEP)
    freezer.outcome = True
    assert service.frozen
    service.tick()  # too early by a step
    assert status_of_later(answer, service, status_of) == Status.OK
    assert freezer.idle


def status_of_later(answer, service, status_of):
    """Whoever asks first, the exchange or the clock: the answer is the same."""
    while isinstance(answer, Later):
        service._monotonic.now += STEP
        service.tick()
        answer = answer.again()
    return status_of(answer)


def test_the_time_of_a_freeze_counts_from_the_first_mount(service, send, freezer, monotonic, status_of):
    answer = send(FREEZE)
    assert service.deadline() == FREEZE_PATIENCE  # nothing is frozen, but it is to be broken off then
    assert not service.frozen
    monotonic.now += 5
    freezer.frozen = True  # some of them are
    answer = answer.again()
    assert service.deadline() == MAX_FROZEN
    monotonic.now += 10
    freezer.outcome = True
    assert status_of(answer.again()) == Status.OK
    assert service.deadline() == MAX_FROZEN - 10


def test_a_freeze_that_is_half_done_for_too_long_is_broken_off(service, send, freezer, monotonic, status_of):
    answer = send(FREEZE)
    freezer.frozen = True
    answer = answer.again()
    monotonic.now += MAX_FROZEN
    assert service.deadline() == 0
    service.tick()
    assert freezer.calls == ["freeze", "thaw"]
    assert status_of(answer.again()) == Status.FAIL
    assert service.deadline() == pytest.approx(STEP)
    monotonic.now += STEP
    freezer.outcome = True
    service.tick()
    assert freezer.idle
    assert service.deadline() is None
    assert status_of(send(THAW)) == Status.OK  # that it did not hold was said in FREEZE's answer


@pytest.mark.parametrize("by", ["the exchange", "the clock"])
def test_a_freeze_that_does_not_come_to_its_end_is_broken_off(
    by, service, send, freezer, monotonic, status_of
):
    answer = send(FREEZE)
    monotonic.now += FREEZE_PATIENCE
    assert service.deadline() == 0
    if by == "the clock":
        service.tick()
    assert status_of(answer.again()) == Status.FAIL
    assert freezer.calls == ["freeze", "thaw"]
    assert "too long" in str(service.last_error)


def test_a_thaw_that_does_not_come_to_its_end_is_answered_and_gone_on_with(
    service, send, freezer, monotonic, status_of
):
    freeze = send(FREEZE)
    freezer.outcome = True
    freeze.again()
    answer = send(THAW)
    monotonic.now += THAW_PATIENCE
    assert status_of(answer.again()) == Status.FAIL
    service.tick()
    assert service.deadline() == RETRY  # no hurry any more
    monotonic.now += RETRY
    freezer.outcome = True
    service.tick()
    assert freezer.idle
    assert service.deadline() is None


def test_a_second_freeze_waits_for_the_same(service, send, freezer, status_of):
    first, second = send(FREEZE), send(FREEZE)
    assert isinstance(second, Later)
    freezer.outcome = True
    assert status_of(second.again()) == Status.OK
    assert status_of(first.again()) == Status.OK
    assert freezer.calls == ["freeze"]


def test_two_that_wait_for_the_same_freeze_hear_the_same_failure(service, send, freezer, status_of):
    first, second = send(FREEZE), send(FREEZE)
    freezer.outcome = EffectError("no", 0x80070015)
    assert status_of(first.again()) == status_of(second.again()) == 0x80070015
    assert service.counters.effect_errors == 1


def test_a_thaw_breaks_off_a_freeze_that_is_under_way(service, send, freezer, status_of):
    freeze, thaw = send(FREEZE), send(THAW)
    assert freezer.calls == ["freeze", "thaw"]
    assert status_of(freeze.again()) == Status.FAIL
    freezer.outcome = True
    assert status_of_later(thaw, service, status_of) == Status.OK
    assert freezer.idle
    assert service.deadline() is None


def test_a_freeze_during_a_thaw_begins_after_it(service, send, freezer, status_of):
    freeze, thaw = send(FREEZE), send(THAW)
    again = send(FREEZE)
    assert isinstance(again, Later)
    freezer.outcome = True  # of the thaw
    again = again.again()
    assert freezer.calls == ["freeze", "thaw", "freeze"]
    assert status_of(freeze.again()) == Status.FAIL
    assert status_of(thaw.again()) == Status.OK
    freezer.outcome = True
    assert status_of(again.again()) == Status.OK
    assert service.deadline() == MAX_FROZEN


def test_a_reset_breaks_off_a_freeze_and_the_clock_sees_to_the_rest(
    service, send, freezer, monotonic, status_of
):
    send(FREEZE)
    service.reset()
    assert freezer.calls == ["freeze", "thaw"]
    assert service.deadline() == pytest.approx(STEP)
    freezer.frozen = True  # what was completed after that
    service.reset()
    assert freezer.calls == ["freeze", "thaw"]
    monotonic.now += STEP
    service.tick()
    assert service.deadline() == pytest.approx(STEP)
    freezer.outcome = True
    monotonic.now += STEP
    service.tick()
    assert freezer.idle
    assert service.deadline() is None
    assert status_of(send(THAW)) == Status.OK


def test_a_thaw_that_the_time_began_is_waited_for_and_answered_as_too_late(
    service, send, freezer, monotonic, status_of
):
    freeze = send(FREEZE)
    freezer.outcome = True
    freeze.again()
    monotonic.now += MAX_FROZEN
    service.tick()
    thaw = send(THAW)
    assert isinstance(thaw, Later)
    assert freezer.calls == ["freeze", "thaw"]
    freezer.outcome = True
    assert status_of_later(thaw, service, status_of) == Status.FAIL
    assert status_of(send(THAW)) == Status.OK


def test_a_thaw_that_fails_in_the_end_is_tried_again(service, send, freezer, monotonic, status_of):
    freeze = send(FREEZE)
    freezer.outcome = True
    freeze.again()
    thaw = send(THAW)
    freezer.outcome = EffectError("no")
    assert status_of_later(thaw, service, status_of) == Status.FAIL
    assert service.deadline() == RETRY
    monotonic.now += RETRY
    service.tick()
    assert freezer.calls == ["freeze", "thaw", "thaw"]
    freezer.outcome = True
    monotonic.now += STEP
    service.tick()
    assert freezer.idle
    assert service.deadline() is None


ACTIONS = ("freeze", "thaw", "reset", "ask again", "some are frozen", "done", "failed", "time")


@pytest.mark.parametrize("first", ACTIONS)
def test_whatever_the_order_nothing_stays_frozen(first, packet, status_of):
    """All orders of five: what is frozen or under way has a time that ends it, and no answer tells a lie."""

    class Clock:
        now = 0.0

        def __call__(self):
            return self.now

    requests = {
        "freeze": packet(MessageType.VSS, VssRequest(FREEZE).encode()),
        "thaw": packet(MessageType.VSS, VssRequest(THAW).encode()),
    }
    for rest in itertools.product(ACTIONS, repeat=4):
        clock, freezer = Clock(), ScriptedFreezer()
        service = Vss(freezer, monotonic=clock)
        waiting = []

        def take(kind, answer, waiting=waiting, freezer=freezer, order=rest):
            if isinstance(answer, Later):
                waiting.append((kind, answer))
            elif status_of(answer) == Status.OK and kind == "thaw":
                assert freezer.idle, order
            elif status_of(answer) == Status.OK:
                assert freezer.frozen, order

        for action in (first, *rest):
            match action:
                case "freeze" | "thaw" if not any(kind == action for kind, _ in waiting):
                    take(action, service.receive(requests[action]))
                case "reset":
                    service.reset()
                    waiting.clear()  # as an exchange does with its channel's end
                case "ask again" if waiting:
                    kind, later = waiting.pop(0)
                    take(kind, later.again())
                case "some are frozen" if freezer.work is not None:
                    freezer.frozen = True
                case "done" if freezer.work is not None:
                    freezer.outcome = True
                case "failed" if freezer.work is not None:
                    freezer.outcome = EffectError("no")
                case "time" if service.deadline() is not None:
                    clock.now += service.deadline()
                    service.tick()
            assert freezer.idle or service.deadline() is not None, (first, *rest)
        for _ in range(10):  # the guardian does what it was told; nobody asks for it but the clock
            if service.deadline() is None:
                break
            freezer.outcome = True
            clock.now += service.deadline()
            service.tick()
        assert freezer.idle, (first, *rest)
        assert service.deadline() is None
        for kind, later in waiting:
            assert kind == "freeze" or status_of(later.again()) in (Status.OK, Status.FAIL)
