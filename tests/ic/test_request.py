# SPDX-License-Identifier: Apache-2.0
"""A request in C is what it is in Python, and one in an inbox never shows another's bytes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvring.errors import MessageError, ShortMessageError
from hvring.ic.fcopy import CompleteCopy, WriteChunk
from hvring.ic.frame import HEADER, Frame, Inbox, MessageType, Request, Version, plain_chunk

HEAD = struct.Struct("<IIHHHHHHIBBH")
small, u8, u16, u32 = st.integers(0, 400), *(st.integers(0, 2**bits - 1) for bits in (8, 16, 32))
headers = st.builds(
    HEAD.pack,
    st.one_of(st.just(1), u32),
    st.one_of(small, u32),
    *[u16] * 5,
    st.one_of(small, u16),
    u32,
    u8,
    st.one_of(st.just(3), u8),
    u16,
)
packets = st.builds(lambda head, body: head + body, headers, st.binary(max_size=300))


def fields(raw: bytes) -> dict[str, object]:
    """What the headers say, in plain Python."""
    came = len(raw)
    pipe_type, pipe_size, f0, f1, kind, v0, v1, size, status, tid, flags, _ = HEAD.unpack_from(raw)
    claimed = 8 + pipe_size
    plausible = HEADER <= claimed <= came and came - claimed < 8
    data = raw[:claimed].ljust(came, b"\0") if plausible else raw
    odd = {
        "pipe-type": pipe_type != 1,
        "pipe-size": not plausible,
        "body-size": size != pipe_size - 20,
        "flags": flags != 3,
    }
    return {
        "payload": data,
        "body": data[HEADER:],
        "size": came - HEADER,
        "type": kind,
        "framework": Version(f0, f1),
        "version": Version(v0, v1),
        "transaction_id": tid,
        "flags": flags,
        "status": status,
        "pipe_size": pipe_size,
        "body_size": size,
        "overrun": -(-claimed // 8) > -(-came // 8) or HEADER + size > came,
        "anomalies": tuple(name for name, true in odd.items() if true),
        "is_odd": any(odd.values()),
    }


def answered(raw: bytes, status: int, body: bytes | None, body_size: int | None) -> bytes:
    """The answer, in plain Python."""
    out = bytearray(fields(raw)["payload"])  # type: ignore[arg-type]
    if body is not None:
        n = min(len(body), len(out) - HEADER)
        out[HEADER : HEADER + n] = body[:n]
    if body_size is not None:
        struct.pack_into("<H", out, 18, body_size)
    struct.pack_into("<I", out, 20, status)
    out[25] = 5
    return bytes(out)


def received(raw: bytes, inbox: Inbox | None = None) -> Request:
    """As a channel leaves it."""
    inbox = Inbox() if inbox is None else inbox
    memoryview(inbox)[: len(raw)] = raw
    return inbox.request(len(raw))


@given(packets)
def test_the_headers_are_what_they_are_in_python(raw: bytes) -> None:
    expected = fields(raw)
    for request in (Request.parse(raw), received(raw)):
        assert {name: getattr(request, name) for name in expected} == expected
        assert request.view == expected["body"]
        assert bytes(request) == expected["payload"]
        assert len(request) == len(raw)


@given(packets, u32, st.none() | st.binary(max_size=400), st.none() | u16)
def test_an_answer_is_what_it_is_in_python(
    raw: bytes, status: int, body: bytes | None, body_size: int | None
) -> None:
    expected = answered(raw, status, body, body_size)
    assert Request.parse(raw).answer(status, body, body_size) == expected
    in_place = received(raw)
    assert in_place.answer(status, body, body_size) is in_place
    assert bytes(in_place) == expected


@pytest.mark.parametrize("length", range(HEADER))
def test_less_than_the_headers_is_short_in_an_inbox_too(length: int) -> None:
    inbox = Inbox()
    with pytest.raises(ShortMessageError):
        inbox.request(length)
    assert not inbox.is_held


def test_an_inbox_has_the_length_that_it_was_given() -> None:
    with pytest.raises(ValueError, match="hold no message"):
        Inbox(HEADER - 1)
    with pytest.raises(ValueError, match="in an inbox of 64"):
        Inbox(64).request(65)
    with pytest.raises(ValueError, match="in an inbox of 64"):
        Inbox(64).request(-1)


BEAT = Frame(MessageType.HEARTBEAT, b"12345678").encode().ljust(40, b"\xee")


def test_what_looks_into_an_inbox_holds_it() -> None:
    inbox = Inbox()
    request = received(BEAT, inbox)
    assert inbox.is_held
    view = request.view
    del request
    assert inbox.is_held
    part = view[:4]
    view.release()
    assert inbox.is_held
    assert part == b"1234"
    part.release()
    del view, part
    assert not inbox.is_held


def test_a_view_is_read_only_and_a_copy_is_a_copy() -> None:
    request = received(BEAT)
    assert request.view.readonly
    body = request.body
    request.answer(body=b"abc")
    assert body[:4] == b"1234"
    assert request.view[:4] == b"abc4"


def test_a_body_may_be_a_part_of_the_request_itself() -> None:
    request = received(BEAT)
    request.answer(body=request.view[2:6])
    assert request.view[:8] == b"34565678"


@pytest.mark.parametrize(
    "numbers", [{"status": -1}, {"status": 2**32}, {"body_size": 2**16}, {"body": "text"}]
)
def test_an_answer_that_cannot_be_made_changes_nothing(numbers: dict[str, object]) -> None:
    request = received(BEAT)
    before = bytes(request)
    with pytest.raises((OverflowError, TypeError)):
        request.answer(**{"body": b"abcd", **numbers})  # type: ignore[arg-type]
    assert bytes(request) == before


def test_a_request_is_made_over_bytes_only() -> None:
    with pytest.raises(TypeError):
        Request()
    with pytest.raises(TypeError):
        Request.parse(None)  # type: ignore[arg-type]


def write(offset: int, data: bytes, **how: int) -> bytes:
    raw = Frame(MessageType.FCOPY, WriteChunk(offset, data).encode(), **how).encode()
    return raw + bytes(-len(raw) % 8)


def test_a_plain_chunk_is_the_data_of_a_write() -> None:
    data = bytes(range(256)) * 24
    for request in (received(write(100, data)), Request.parse(write(100, data))):
        view = plain_chunk(request, 100, 1 << 40)
        assert view == data
        assert view.readonly
    assert plain_chunk(received(write(100, data)), 100, 100 + len(data)) == data


@pytest.mark.parametrize(
    ("raw", "offset", "limit"),
    [
        (write(100, b"12345"), 99, 1 << 40),  # another place
        (write(100, b"12345"), 100, 104),  # one byte too many
        (write(100, b""), 100, 1 << 40),
        (write(2**63 - 5, b"12345"), 2**63 - 5, 2**63 - 1),
        (write(-1, b"12345"), -1, 1 << 40),
        (write(100, b"12345", flags=5), 100, 1 << 40),  # odd
        (write(100, b"12345", pipe_type=2), 100, 1 << 40),
        (Frame(MessageType.FCOPY, CompleteCopy().encode().ljust(96, b"\0")).encode(), 0, 1 << 40),
        (Frame(MessageType.FCOPY, CompleteCopy().encode()).encode(), 0, 1 << 40),
        (Frame(MessageType.KVP, WriteChunk(100, b"12345").encode()).encode(), 100, 1 << 40),
    ],
)
def test_all_else_is_no_plain_chunk(raw: bytes, offset: int, limit: int) -> None:
    assert plain_chunk(received(raw), offset, limit) is None


@given(st.binary(min_size=36, max_size=120), st.integers(0, 70), u32)
def test_a_plain_chunk_is_what_the_decoder_sees(body: bytes, offset: int, size: int) -> None:
    head = struct.pack("<I32xIqI", 1, 0, offset, size % 80)
    request = received(Frame(MessageType.FCOPY, (head + body)).encode())
    view = plain_chunk(request, offset, 1 << 40)
    try:
        chunk = WriteChunk.decode(request.body)
    except MessageError:
        assert view is None
    else:
        assert (view is None) == (not chunk.data or request.is_odd)
        assert view is None or view == chunk.data
