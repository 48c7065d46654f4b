# SPDX-License-Identifier: Apache-2.0
"""Packets that are answered where they lie get the same answers, and no effect ever sees another packet's bytes."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvring import ic
from hvring.ic import Frame, MessageType, NegotiateRequest, Version
from hvring.ic.frame import Inbox
from hvring.pending import Pending, settle
from hvring.services import Fcopy, Heartbeat
from hvring.services.base import IntegrationService

FRAMEWORK = Version(3, 0)
NAMES = ("shutdown", "timesync", "heartbeat", "kvp", "vss", "fcopy")
bodies = {
    "shutdown": st.builds(lambda flags: ic.ShutdownRequest(flags=flags).encode(), st.integers(0, 15)),
    "timesync": st.builds(lambda flags: ic.TimeSampleV4(0, 0, flags).encode(), st.integers(0, 3)),
    "heartbeat": st.builds(lambda n: ic.Heartbeat(n).encode(), st.integers(0, 2**64 - 1)),
    "kvp": st.one_of(
        st.builds(lambda pool, n: ic.KvpEnumerate(pool, n).encode(), st.integers(0, 5), st.integers(0, 3)),
        st.builds(lambda key, value: ic.KvpSet(0, key, value).encode(), st.text("ab"), st.text("xyz")),
        st.builds(lambda key: ic.KvpGet(0, key).encode(), st.text("ab")),
        st.builds(lambda key: ic.KvpDelete(0, key).encode(), st.text("ab")),
    ),
    "vss": st.builds(lambda operation: ic.VssRequest(operation).encode(), st.integers(0, 8)),
    "fcopy": st.one_of(
        st.builds(lambda size: ic.StartCopy("f", "/dir", 1, size).encode(), st.sampled_from([0, 5, 20])),
        st.builds(
            lambda offset, data: ic.WriteChunk(offset, data).encode(),
            st.sampled_from([0, 0, 5, 10, 15, -1]),
            st.sampled_from([b"", b"12345", b"1234567890"]),
        ),
        st.just(ic.CompleteCopy().encode()),
        st.just(ic.CancelCopy().encode()),
    ),
}
VERSIONS = {
    "shutdown": (3, 2),
    "timesync": (4, 0),
    "heartbeat": (3, 0),
    "kvp": (4, 0),
    "vss": (5, 0),
    "fcopy": (1, 1),
}
TYPES = {name: MessageType[name.upper()] for name in NAMES}


@st.composite
def packets(draw: st.DrawFn, name: str) -> bytes:
    """A request, as often as not with something wrong about it."""
    version = Version(*VERSIONS[name])
    body = draw(bodies[name] | st.just(NegotiateRequest((FRAMEWORK,), (version,)).encode()))
    kind = 0 if body[:2] == b"\1\0" and len(body) == 16 and draw(st.booleans()) else TYPES[name]
    raw = bytearray(Frame(kind, body, FRAMEWORK, version).encode())
    raw += draw(st.binary(min_size=-len(raw) % 8, max_size=-len(raw) % 8))
    wrong = draw(st.sampled_from(["nothing", "nothing", "a field", "cut", "longer", "first"]))
    if wrong == "a field":
        offset, form = draw(
            st.sampled_from([(0, "<I"), (4, "<I"), (12, "<H"), (18, "<H"), (25, "<B"), (28, "<I")])
        )
        struct.pack_into(form, raw, offset, draw(st.sampled_from([0, 1, 3, 9, 255])))
    elif wrong == "cut":
        del raw[draw(st.integers(0, len(raw))) & ~7 :]
    elif wrong == "longer":
        raw += bytes(8 * draw(st.integers(1, 4)))
    elif wrong == "first" and len(raw) > 36:
        raw[28:36] = b"\xff" * 8
    return bytes(raw)


def by_copy(service: IntegrationService[Any], raw: bytes) -> bytes | None:
    reply = settle(service.receive(raw))
    if reply is None:
        return None
    if reply.then is not None:
        reply.then()
    return bytes(reply.payload)


def in_place(service: IntegrationService[Any], raw: bytes, inbox: Inbox) -> bytes | None:
    memoryview(inbox)[: len(raw)] = raw
    reply = settle(service.receive_in(inbox, len(raw)))
    if reply is None:
        return None
    then = getattr(reply, "then", None)
    if then is not None:
        then()
    return bytes(getattr(reply, "payload", reply))


@pytest.mark.parametrize("slow", [False, True], ids=["at once", "later"])
@pytest.mark.parametrize("name", NAMES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@given(data=st.data())
def test_any_packets_get_the_same_answers(
    name: str, slow: bool, data: st.DataObject, make_services: Any
) -> None:
    copying, placing = make_services(), make_services()
    for made in (copying, placing):
        made["fcopy"]._receiver.slow = slow
    first, second = copying[name], placing[name]
    inbox = Inbox()
    for raw in data.draw(st.lists(packets(name), max_size=8)):
        if inbox.is_held:  # by the traceback of the last failure, say
            inbox = Inbox()
        assert in_place(second, raw, inbox) == by_copy(first, raw)
    assert second.counters == first.counters
    assert second.negotiated == first.negotiated


class Keeper:
    """An effect that does what it should not: it keeps what it was given."""

    def __init__(self) -> None:
        self.kept: list[bytes | memoryview] = []

    def start(self, directory: str, name: str, **how: object) -> Keeper:
        return self

    def write(self, offset: int, data: bytes | memoryview) -> None:
        self.kept.append(data)

    def complete(self) -> str:
        return "path"

    def abort(self) -> None:
        self.kept.clear()


def test_data_that_an_effect_keeps_stays_what_it_was() -> None:
    """What is kept holds the inbox, and whoever receives takes another one."""
    keeper = Keeper()
    service = Fcopy(keeper)  # type: ignore[arg-type]
    inbox = Inbox()
    in_place(service, Frame(MessageType.FCOPY, ic.StartCopy("f", "/dir").encode()).encode(), inbox)
    chunks = [bytes([n]) * 6144 for n in range(1, 20)]
    for n, chunk in enumerate(chunks):
        if inbox.is_held:
            inbox = Inbox()
        raw = Frame(MessageType.FCOPY, ic.WriteChunk(6144 * n, chunk).encode()).encode()
        answer = in_place(service, raw, inbox)
        assert answer is not None
        assert answer[20:24] == bytes(4)
    assert [bytes(data) for data in keeper.kept] == chunks


def test_an_embedders_own_class_gets_bytes_unless_it_says_otherwise() -> None:
    class Own(Heartbeat):
        pass

    class Placing(Heartbeat):
        in_place = True

    assert Heartbeat.in_place
    assert not Own.in_place
    assert Placing.in_place
    assert not IntegrationService.in_place


def test_a_request_that_waits_holds_its_inbox() -> None:
    class Slow(Keeper):
        def write(self, offset: int, data: bytes | memoryview) -> Pending[None]:  # type: ignore[override]
            return Pending(lambda: self.kept.append(bytes(data)), 0.0)

    service = Fcopy(Slow())  # type: ignore[arg-type]
    inbox = Inbox()
    in_place(service, Frame(MessageType.FCOPY, ic.StartCopy("f", "/dir").encode()).encode(), inbox)
    raw = Frame(MessageType.FCOPY, ic.WriteChunk(0, b"12345").encode()).encode()
    memoryview(inbox)[: len(raw)] = raw
    waiting = service.receive_in(inbox, len(raw))
    assert isinstance(waiting, Pending)
    assert inbox.is_held
    waiting.cancel()
    del waiting
    service.reset()
    assert not inbox.is_held
