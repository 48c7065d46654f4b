# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import struct

import pytest

from hvring.ic import ApplicationState, MessageType
from hvring.ic import Heartbeat as Beat
from hvring.services import Heartbeat


@pytest.mark.parametrize(("sequence", "answer"), [(1, 2), (2**32 - 1, 2**32), (2**64 - 1, 0)])
@pytest.mark.parametrize("rest", [bytes(4), b"\xee" * 28, bytes(100)])
def test_the_number_comes_back_one_higher_and_the_rest_unchanged(sequence, answer, rest, packet):
    request = packet(MessageType.HEARTBEAT, Beat(sequence, 2, rest).encode())
    reply = Heartbeat().receive(request)
    assert reply.payload == request[:25] + b"\5" + request[26:28] + struct.pack("<Q", answer) + request[36:]


def test_eight_bytes_are_enough(packet):
    reply = Heartbeat().receive(packet(MessageType.HEARTBEAT, struct.pack("<Q", 9)))
    assert reply.payload[28:] == struct.pack("<Q", 10) + bytes(4)


@pytest.mark.parametrize("size", [0, 4])
def test_less_is_met_with_silence(size, packet):
    service = Heartbeat()
    assert service.receive(packet(MessageType.HEARTBEAT, bytes(size))) is None
    assert (service.counters.short, service.counters.silent) == (1, 1)


@pytest.mark.parametrize("state", list(ApplicationState))
def test_the_health_is_reported_when_there_is_a_callable(state, packet):
    reply = Heartbeat(lambda: state).receive(packet(MessageType.HEARTBEAT, Beat(1, 0, b"r" * 28).encode()))
    assert Beat.decode(reply.payload[28:68]) == Beat(2, state, b"r" * 28)


def test_a_body_without_a_state_field_gets_no_state(packet):
    service = Heartbeat(lambda: ApplicationState.STOPPED)
    reply = service.receive(packet(MessageType.HEARTBEAT, bytes(8)))
    assert reply.payload[36:40] == bytes(4)


@pytest.mark.parametrize("health", [lambda: 1 / 0, lambda: 77, lambda: "fine"])
def test_a_health_that_breaks_is_critical_and_never_stops_the_beat(health, packet):
    service = Heartbeat(health)
    for n in range(3):
        reply = service.receive(packet(MessageType.HEARTBEAT, Beat(n).encode()))
        assert Beat.decode(reply.payload[28:]).sequence == n + 1
        assert Beat.decode(reply.payload[28:]).state == ApplicationState.CRITICAL
    assert service.counters.effect_errors == 3
    assert service.counters.failed == 0
    assert service.last_error is not None


def test_where_nobody_says_how_things_are_the_host_s_word_is_echoed(packet):
    reply = Heartbeat(lambda: None).receive(packet(MessageType.HEARTBEAT, Beat(1, 2).encode()))
    assert Beat.decode(reply.payload[28:]).state == ApplicationState.CRITICAL


def test_each_change_is_told_once_with_its_reason(packet):
    class Health:
        state, why = ApplicationState.HEALTHY, ""

        def __call__(self):
            return self.state

    health, events = Health(), []
    service = Heartbeat(health)
    service.on_event = events.append
    for state, why in (
        (ApplicationState.HEALTHY, ""),
        (ApplicationState.CRITICAL, "unit db.service: failed"),
        (None, ""),
    ):
        health.state, health.why = state, why
        for n in range(3):
            service.receive(packet(MessageType.HEARTBEAT, Beat(n).encode()))
    assert [event.facts for event in events] == [
        {"from": "not said", "to": "healthy", "why": ""},
        {"from": "healthy", "to": "critical", "why": "unit db.service: failed"},
        {"from": "critical", "to": "not said", "why": ""},
    ]
    assert str(events[1]) == ("heartbeat: changed health is critical (was healthy): unit db.service: failed")
