# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import time

import pytest

from hvring.errors import EffectError
from hvring.events import EventKind
from hvring.guest.power import PowerAction, ShutdownOrder
from hvring.ic import MessageType, ShutdownRequest, Status
from hvring.ic.shutdown_reason import words
from hvring.news import BURST
from hvring.pending import Pending, Wait, settle
from hvring.reasons import Obstacle, Reason
from hvring.services import Shutdown

OFF, RESTART, HIBERNATE = PowerAction.OFF, PowerAction.RESTART, PowerAction.HIBERNATE


@pytest.mark.parametrize(
    ("flags", "action", "force"),
    [
        (0, OFF, False),
        (1, OFF, True),
        (2, RESTART, False),
        (3, RESTART, True),
        (4, HIBERNATE, False),
        (5, HIBERNATE, True),
    ],
)
def test_the_action_is_begun_before_the_answer_and_let_go_after_it(
    flags, action, force, power, packet, status_of
):
    service = Shutdown(power)
    reply = service.receive(packet(MessageType.SHUTDOWN, ShutdownRequest(7, 30, flags, "bye").encode()))
    assert status_of(reply) == Status.OK
    assert (power.orders, power.let_go) == ([ShutdownOrder(action, force, 7, 30, "bye")], [])
    reply.then()
    service.reset()
    assert power.let_go == power.orders, "once"


def test_what_was_begun_goes_on_when_the_answer_cannot_leave(power, packet):
    service = Shutdown(power)
    service.receive(packet(MessageType.SHUTDOWN, ShutdownRequest().encode()))
    service.reset()
    assert power.let_go == power.orders


@pytest.mark.parametrize("flags", [6, 7, 8, 9, 0x10, 0x80000000, 0xFFFFFFF8, 0xFFFFFFFF])
def test_flags_that_mean_nothing_are_refused(flags, power, packet, status_of):
    service = Shutdown(power)
    reply = service.receive(packet(MessageType.SHUTDOWN, ShutdownRequest(flags=flags).encode()))
    assert status_of(reply) == Status.FAIL
    assert reply.then is None
    assert service.counters.unknown_operation == 1


@pytest.mark.parametrize("action", list(PowerAction))
def test_what_the_machine_cannot_do_is_refused(action, power, packet, status_of):
    power.supported.discard(action)
    flags = {OFF: 0, RESTART: 2, HIBERNATE: 4}[action]
    reply = Shutdown(power).receive(packet(MessageType.SHUTDOWN, ShutdownRequest(flags=flags).encode()))
    assert status_of(reply) == Status.FAIL
    assert reply.then is None


def test_on_request_hears_of_the_order_before_the_action(power, packet):
    heard = []
    service = Shutdown(power, on_request=lambda order: heard.append((order.text, len(power.orders))))
    service.receive(packet(MessageType.SHUTDOWN, ShutdownRequest(text="bye").encode())).then()
    assert heard == [("bye", 0)]
    assert len(power.orders) == 1


def test_an_on_request_that_raises_does_not_stop_the_action(power, packet):
    def broken(_):
        raise RuntimeError("no screen")

    service = Shutdown(power, on_request=broken)
    service.receive(packet(MessageType.SHUTDOWN, ShutdownRequest().encode())).then()
    assert len(power.orders) == 1
    assert str(service.last_error) == "no screen"


def test_an_action_that_fails_is_told_to_the_host(power, packet, status_of):
    power.broken = True
    service = Shutdown(power)
    reply = service.receive(packet(MessageType.SHUTDOWN, ShutdownRequest().encode()))
    assert status_of(reply) == Status.FAIL
    assert reply.then is None
    assert service.counters.effect_errors == 1


class SlowPower:
    """Actions that take their time: ``finish`` ends the oldest, with an error or without."""

    def __init__(self) -> None:
        self.orders: list[ShutdownOrder] = []
        self.obstacles: dict[PowerAction, str] = {}
        self._error: Exception | None = None
        self.descriptor = os.eventfd(0)

    def supports(self, action: PowerAction) -> bool:
        raise AssertionError("who knows the obstacle is asked for it")

    def obstacle(self, order: ShutdownOrder) -> str | None:
        return self.obstacles.get(order.action)

    def act(self, order: ShutdownOrder) -> Pending[None]:
        self.orders.append(order)
        return Pending(self._resume, time.monotonic() + 1000, self.descriptor)

    def finish(self, error: Exception | None = None) -> None:
        self._error = error
        os.eventfd_write(self.descriptor, 1)

    def _resume(self) -> None:
        os.eventfd_read(self.descriptor)
        if self._error is not None:
            raise self._error


@pytest.fixture
def slow():
    power = SlowPower()
    yield power
    os.close(power.descriptor)


@pytest.fixture
def told(slow, packet):
    """A service over ``slow``, what it told, and a function that brings it an order."""
    service, events = Shutdown(slow), []
    service.on_event = lambda event: events.append((event.kind, event.detail))

    def order(flags: int = 0, timeout: int = 0):
        message = ShutdownRequest(flags=flags, timeout=timeout, text="bye")
        return service.receive(packet(MessageType.SHUTDOWN, message.encode()))

    return service, events, order


def test_the_host_is_answered_when_the_action_is_certain_and_told_when_it_failed(
    told, slow, status_of
) -> None:
    service, events, order = told
    answer = order()
    assert isinstance(answer, Pending)
    assert answer.descriptor == slow.descriptor
    answer = answer.resume()  # others may have caused this look
    assert isinstance(answer, Pending)
    slow.finish(EffectError("cannot power off: systemctl: exit status 1 Operation inhibited"))
    assert status_of(answer.resume()) == Status.FAIL
    assert events == [
        (EventKind.ASKED, "power off: 'bye'"),
        (EventKind.FAILED, "power off: cannot power off: systemctl: exit status 1 Operation inhibited"),
    ]
    assert "inhibited" in str(service.last_error)
    answer = order()
    slow.finish()
    assert status_of(answer.resume()) == Status.OK
    assert events[-1] == (EventKind.CHANGED, "power off: under way")


def test_who_is_not_waited_for_any_more_is_cancelled(slow, packet) -> None:
    cancelled = []
    slow.act = lambda order: Pending(
        slow._resume, time.monotonic() + 1000, -1, lambda: cancelled.append(order)
    )
    service, events = Shutdown(slow), []
    service.on_event = events.append
    answer = service.receive(packet(MessageType.SHUTDOWN, ShutdownRequest().encode()))
    answer.cancel()
    assert len(cancelled) == 1
    assert [event.kind for event in events] == [EventKind.ASKED, EventKind.CANCELLED]
    assert events[-1].facts["result"] == "cancelled"


def test_a_program_s_lock_is_waited_for_until_the_host_s_deadline(told, slow, status_of) -> None:
    service, events, order = told
    slow.obstacles[OFF] = Obstacle("Upgrades forbids it: Stop it first", Reason.INHIBITED)
    assert status_of(order()) == Status.FAIL, "no deadline: at once"
    answer = order(timeout=1000)
    for _ in range(3):
        assert isinstance(answer, Pending)
        answer = answer.resume()
    assert slow.orders == []
    del slow.obstacles[OFF]
    answer = answer.resume()
    assert len(slow.orders) == 1
    slow.finish()
    assert status_of(answer.resume()) == Status.OK
    slow.obstacles[OFF] = Obstacle("Upgrades forbids it: Stop it first", Reason.INHIBITED)
    assert status_of(settle(order(timeout=1))) == Status.FAIL
    assert events[-1] == (EventKind.REFUSED, "power off: Upgrades forbids it: Stop it first")
    slow.obstacles[OFF] = Obstacle("there is no systemctl", Reason.NO_WAY)
    assert status_of(order(timeout=1000)) == Status.FAIL, "nothing to wait for"


def test_what_is_to_be_done_before_is_done_before_and_stops_nothing(power, packet, status_of) -> None:
    heard = []

    def drain(order, until):
        heard.append((order.text, len(power.orders), until - time.monotonic()))
        yield Wait(0.0)
        raise EffectError("the load balancer does not answer", reason=Reason.DRAIN_FAILED)

    service, events = Shutdown(power, drain=drain, patience=77), []
    service.on_event = events.append
    for timeout in (0, 500):
        message = ShutdownRequest(timeout=timeout, text="bye")
        answer = service.receive(packet(MessageType.SHUTDOWN, message.encode()))
        assert isinstance(answer, Pending)
        assert status_of(answer.resume()) == Status.OK
    assert [(text, orders) for text, orders, _ in heard] == [("bye", 0), ("bye", 1)]
    assert 60 < heard[0][2] <= 77
    assert 400 < heard[1][2] <= 500
    (failed,) = [event for event in events if event.kind is EventKind.FAILED]
    assert failed.facts["reason"] == "drain_failed"


def test_a_refusal_says_why(told, slow, status_of) -> None:
    service, events, order = told
    slow.obstacles[HIBERNATE] = Obstacle("there is no swap to hibernate into", Reason.CANNOT_HIBERNATE)
    assert status_of(order(flags=4)) == Status.FAIL
    assert events == [(EventKind.REFUSED, "hibernate: there is no swap to hibernate into")]
    assert service.counters.failures == {"cannot_hibernate": 1}
    assert service.last_failure.reason is Reason.CANNOT_HIBERNATE
    assert slow.orders == []


def test_each_order_is_on_record_with_all_that_the_host_said_and_what_came_of_it(slow, packet) -> None:
    service, events = Shutdown(slow), []
    service.on_event = events.append

    def order(text: str, timeout: int = 30):
        message = ShutdownRequest(reason=0x80020003, timeout=timeout, flags=1, text=text)
        return service.receive(packet(MessageType.SHUTDOWN, message.encode()))

    asked = {
        "action": "power off",
        "force": True,
        "code": "0x80020003",
        "code_says": "planned, operating system: upgrade",
        "deadline": 30,
        "text": "good night",
    }
    answer = order("good night")
    assert events[-1].facts == {**asked, "result": "accepted"}
    slow.finish(EffectError("no", reason=Reason.COMMAND_FAILED))
    answer.resume()
    assert events[-1].kind is EventKind.FAILED
    assert events[-1].facts.items() >= {**asked, "result": "failed", "reason": "command_failed"}.items()
    answer = order("good night")
    slow.finish()
    answer.resume()
    assert events[-1].facts == {**asked, "result": "begun"}
    assert service.last_failure.over_at is not None
    for n in range(2 * BURST):  # more than there may be of other events, and none is left out
        slow.obstacles[OFF] = Obstacle("somebody forbids it", Reason.INHIBITED)
        order(str(n), timeout=0)
    refused = [event.facts for event in events if event.kind is EventKind.REFUSED]
    assert [facts["text"] for facts in refused] == [str(n) for n in range(2 * BURST)]
    assert {facts["reason"] for facts in refused} == {"inhibited"}


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (0x80000000, "planned, other"),
        (0x00050013, "unplanned, system: security"),
        (0xC0040001, "planned, defined by the user, application: maintenance"),
        (0xFFFFFFFF, "planned, defined by the user, major 0xff: minor 0xffff"),
    ],
)
def test_windows_codes_are_said_in_words(code: int, says: str) -> None:
    assert words(code) == says
