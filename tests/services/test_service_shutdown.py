# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from hvring.guest.power import PowerAction, ShutdownOrder
from hvring.ic import MessageType, ShutdownRequest, Status
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
def test_the_answer_comes_before_the_action(flags, action, force, power, packet, status_of):
    service = Shutdown(power)
    reply = service.receive(packet(MessageType.SHUTDOWN, ShutdownRequest(7, 30, flags, "bye").encode()))
    assert status_of(reply) == Status.OK
    assert power.orders == []
    reply.then()
    assert power.orders == [ShutdownOrder(action, force, 7, 30, "bye")]


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


def test_an_action_that_fails_is_counted_and_not_raised(power, packet):
    power.broken = True
    service = Shutdown(power)
    service.receive(packet(MessageType.SHUTDOWN, ShutdownRequest().encode())).then()
    assert service.counters.effect_errors == 1
