# SPDX-License-Identifier: Apache-2.0
"""What every service makes of input that no host should send: one table, and any bytes at all."""

from __future__ import annotations

import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvring import ic
from hvring.errors import LyingLengthError, ShortMessageError, UnknownOperationError
from hvring.events import Event, EventKind
from hvring.ic import Frame, MessageType, NegotiateRequest, Status, Version
from hvring.ic.unreadable import Unreadable
from hvring.services import Fcopy, Heartbeat, Kvp, Shutdown, TimeSync, Vss

NAMES = {
    "shutdown": MessageType.SHUTDOWN,
    "timesync": MessageType.TIMESYNC,
    "heartbeat": MessageType.HEARTBEAT,
    "kvp": MessageType.KVP,
    "vss": MessageType.VSS,
    "fcopy": MessageType.FCOPY,
}
GOOD = {
    "shutdown": ic.ShutdownRequest(flags=2).encode(),
    "timesync": ic.TimeSampleV4(0, 0, 2).encode(),
    "heartbeat": ic.Heartbeat(1).encode(),
    "kvp": ic.KvpEnumerate(2, 0).encode(),
    "vss": ic.VssRequest(5).encode(),
    "fcopy": ic.StartCopy("f", "/dir", 1).encode(),
}
FRAMEWORK = Version(3, 0)
VERSION = {
    "shutdown": Version(3, 2),
    "timesync": Version(4, 0),
    "heartbeat": Version(3, 0),
    "kvp": Version(4, 0),
    "vss": Version(5, 0),
    "fcopy": Version(1, 1),
}
SILENCE = None
OK, FAIL = Status.OK, Status.FAIL


def good(name: str) -> bytearray:
    raw = Frame(NAMES[name], GOOD[name], FRAMEWORK, VERSION[name], transaction_id=3).encode()
    return bytearray(raw + bytes(-len(raw) % 8))


def patched(name: str, form: str, offset: int, value: int) -> bytes:
    raw = good(name)
    struct.pack_into(form, raw, offset, value)
    return bytes(raw)


def resized(name: str, body: bytes) -> bytes:
    raw = Frame(NAMES[name], body, FRAMEWORK, VERSION[name]).encode()
    return raw + bytes(-len(raw) % 8)


def everywhere(expected, **exceptions):
    return [(name, exceptions.get(name, expected)) for name in NAMES]


# what: how the payload is made from a service's name, and the expected status by service
MATRIX = {
    "a good request": (lambda n: bytes(good(n)), everywhere(OK)),
    "nothing": (lambda n: b"", everywhere(SILENCE)),
    "headers cut short": (lambda n: bytes(good(n)[:24]), everywhere(SILENCE)),
    "no body": (lambda n: resized(n, b""), everywhere(SILENCE, kvp=FAIL)),
    "a body one rounding too short": (
        lambda n: resized(n, GOOD[n][: {"kvp": 2572, "heartbeat": 4, "vss": 4}.get(n, len(GOOD[n]) - 8)]),
        everywhere(SILENCE, kvp=FAIL, fcopy=FAIL),
    ),
    "a longer body than any": (lambda n: resized(n, GOOD[n].ljust(13292, b"\0")), everywhere(OK)),
    "another message type": (
        lambda n: patched(n, "<H", 12, 9),
        everywhere(SILENCE, shutdown=FAIL, timesync=FAIL, heartbeat=FAIL),
    ),
    "the type of another service": (
        lambda n: patched(n, "<H", 12, 1 if n != "heartbeat" else 2),
        everywhere(SILENCE, shutdown=FAIL, timesync=FAIL, heartbeat=FAIL),
    ),
    "a pipe size beyond the packet": (lambda n: patched(n, "<I", 4, 13320), everywhere(FAIL)),
    "the largest pipe size": (lambda n: patched(n, "<I", 4, 2**32 - 1), everywhere(FAIL)),
    "a body size beyond the packet": (lambda n: patched(n, "<H", 18, 0xFFFF), everywhere(FAIL)),
    "sizes that are too small": (
        lambda n: bytes(good(n)[:4] + struct.pack("<I", 5) + good(n)[8:18] + b"\3\0" + good(n)[20:]),
        everywhere(OK),
    ),
    "another pipe type": (lambda n: patched(n, "<I", 0, 7), everywhere(OK)),
    "no flags": (lambda n: patched(n, "<B", 25, 0), everywhere(OK)),
    "a response": (lambda n: patched(n, "<B", 25, 5), everywhere(OK)),
    "versions that nobody agreed on": (
        lambda n: bytes(good(n)[:8] + b"\xff" * 4 + good(n)[12:]),
        everywhere(OK),
    ),
    "a first field of all ones": (
        lambda n: patched(n, "<Q", 28, 2**64 - 1),
        everywhere(OK, kvp=Status.NOT_SUPPORTED, fcopy=FAIL),
    ),
    "a negotiation with lying counts": (
        lambda n: bytes(Frame(0, struct.pack("<HHI", 50, 50, 0) + bytes(16)).encode() + bytes(4)),
        everywhere(FAIL),
    ),
    "a negotiation that overruns": (
        lambda n: Frame(0, NegotiateRequest((FRAMEWORK,), (VERSION[n],)).encode()).encode()[:40],
        everywhere(FAIL),
    ),
    "a negotiation without a body": (lambda n: Frame(0).encode() + bytes(4), everywhere(FAIL)),
}
CASES = [(what, name, status) for what, (_, rows) in MATRIX.items() for name, status in rows]


@pytest.mark.parametrize(("what", "name", "expected"), CASES)
@pytest.mark.parametrize("agreed", [False, True], ids=["at once", "after negotiation"])
def test_bad_input_gets_the_expected_status(what, name, expected, agreed, services, packet, status_of):
    service = services[name]
    if agreed:
        request = NegotiateRequest((FRAMEWORK,), (VERSION[name],)).encode()
        assert status_of(service.receive(packet(MessageType.NEGOTIATE, request))) == OK
        assert service.negotiated == (FRAMEWORK, VERSION[name])
    payload = MATRIX[what][0](name)
    reply = service.receive(payload)
    if expected is SILENCE:
        assert reply is None
    else:
        assert status_of(reply) == expected
        assert len(reply.payload) == len(payload)
        assert reply.payload[24] == payload[24]
    # and a good request after it works
    assert status_of(service.receive(bytes(good(name)))) == OK


@pytest.mark.parametrize("name", NAMES)
def test_a_duplicate_is_answered_like_the_first(name, services):
    first, second = (services[name].receive(bytes(good(name))) for _ in range(2))
    assert first.payload == second.payload


@pytest.mark.parametrize("name", NAMES)
def test_the_counters_tell_what_came(name, services):
    service = services[name]
    for payload in (
        good(name),
        patched(name, "<I", 4, 2**32 - 1),
        patched(name, "<H", 12, 9),
        patched(name, "<B", 25, 0),
        b"short",
        Frame(0, NegotiateRequest((), ()).encode()).encode(),
    ):
        service.receive(bytes(payload))
    found = service.counters.as_dict()
    talkative = name in ("shutdown", "timesync", "heartbeat")
    assert found == {
        "requests": 6,
        "replies": 4 + talkative,
        "negotiations": 1,
        "silent": 2 - talkative,
        "failed": 2 + talkative,
        "short": 1,
        "malformed": 1,
        "unknown_type": 1,
        "unknown_operation": 0,
        "anomalies": 2,
        "effect_errors": 0,
        "events_suppressed": 0,
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_reset_forgets_what_was_agreed_on(name, services, packet):
    service = services[name]
    service.receive(packet(MessageType.NEGOTIATE, NegotiateRequest((FRAMEWORK,), (VERSION[name],)).encode()))
    assert service.negotiated is not None
    service.reset()
    assert service.negotiated is None
    service.tick()
    assert service.deadline() is None


@pytest.mark.parametrize("name", NAMES)
def test_a_failed_negotiation_leaves_nothing_agreed(name, services, packet):
    service = services[name]
    service.receive(packet(MessageType.NEGOTIATE, NegotiateRequest((FRAMEWORK,), (VERSION[name],)).encode()))
    service.receive(packet(MessageType.NEGOTIATE, NegotiateRequest((FRAMEWORK,), (Version(9, 9),)).encode()))
    assert service.negotiated is None


@st.composite
def payloads(draw, name: str) -> bytes:
    """Any bytes, any body behind good headers, or a good request with some bytes changed."""
    kind = draw(st.sampled_from(["bytes", "body", "changed"]))
    if kind == "bytes":
        return draw(st.binary(max_size=200))
    if kind == "body":
        return resized(name, draw(st.binary(max_size=600)))
    raw = good(name)
    for _ in range(draw(st.integers(1, 6))):
        raw[draw(st.integers(0, min(len(raw), 80) - 1))] = draw(st.integers(0, 255))
    return bytes(raw[: draw(st.integers(0, len(raw)))]) if draw(st.booleans()) else bytes(raw)


@pytest.mark.parametrize("name", NAMES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(data=st.data())
def test_no_bytes_make_a_service_raise_or_answer_more_than_it_got(name, data, services):
    service = services[name]
    for payload in data.draw(st.lists(payloads(name), min_size=1, max_size=5)):
        reply = service.receive(payload)
        if reply is not None:
            assert len(reply.payload) == len(payload)
            assert reply.payload[25] == 5
            if reply.then is not None:
                reply.then()
        service.tick()
        assert service.deadline() is None or service.deadline() >= 0
    counters = service.counters
    assert counters.requests == counters.replies + counters.silent


class Broken:
    """An effect of which nothing works."""

    ready = frozen = True

    def __getattr__(self, name: str):
        def fail(*_: object, **__: object) -> None:
            raise RuntimeError(name)

        return fail


@pytest.mark.parametrize("make", [Shutdown, TimeSync, Heartbeat, Kvp, Vss, Fcopy])
def test_no_effect_makes_a_service_raise(make):
    service = make(Broken() if make is not Heartbeat else Broken().health)
    for _ in range(2):
        reply = service.receive(bytes(good(service.name)))
        assert len(reply.payload) == len(good(service.name))
        if reply.then is not None:
            reply.then()
        service.tick()
        service.reset()
    assert service.counters.effect_errors > 0
    assert str(service.last_error)


@pytest.mark.parametrize("name", list(NAMES))
def test_what_cannot_be_used_is_counted_each_time_and_told_once(name: str, services) -> None:
    service = services[name]
    told: list[Event] = []
    service.on_event = told.append
    for _ in range(100):
        service.receive(patched(name, "<H", 18, 0xFFF0))  # a body that did not come
    assert service.counters.malformed == 100
    assert [(event.kind, "did not come" in event.detail) for event in told] == [(EventKind.REFUSED, True)]
    service.reset()
    service.receive(patched(name, "<H", 18, 0xFFF0))
    assert len(told) == 2, "another channel, perhaps another host"


@pytest.mark.parametrize("name", ["kvp", "fcopy"])
def test_messages_that_cannot_be_read_are_told_by_their_kinds(name: str, services) -> None:
    service = services[name]
    told: list[Event] = []
    service.on_event = told.append
    for _ in range(10):
        for error in (ShortMessageError("short"), LyingLengthError("long"), UnknownOperationError("what")):
            assert service.respond(Unreadable(77, error)).status != OK
    assert [event.detail.rpartition(" ")[2] for event in told] == ["short", "long", "what"]
    counters = service.counters
    assert (counters.short, counters.malformed, counters.unknown_operation) == (10, 10, 10)
