# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvring.errors import LyingLengthError, ShortMessageError
from hvring.ic import HEADER, MAX_MESSAGE, Frame, MessageType, Request, Status, Version

u8, u16, u32 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32))
versions = st.builds(Version, u16, u16)
frames = st.builds(
    Frame,
    type=u16,
    body=st.binary(max_size=200),
    framework=versions,
    version=versions,
    status=u32,
    transaction_id=u8,
    flags=u8,
    pipe_type=u32,
)


def on_ring(payload: bytes, filler: bytes = b"\xee") -> bytes:
    """As it arrives: rounded to 8 with whatever lay in the ring."""
    return payload + filler * (-len(payload) % 8)


@given(frames)
def test_a_frame_comes_back_from_the_ring_as_it_was(frame: Frame) -> None:
    assert Frame.decode(on_ring(frame.encode())) == frame


def test_a_frame_has_the_layout_of_the_protocol() -> None:
    raw = Frame(
        MessageType.SHUTDOWN,
        b"body!",
        Version(3, 1),
        Version(4, 2),
        Status.FAIL,
        transaction_id=9,
        flags=5,
    ).encode()
    assert raw == struct.pack("<II HH H HH H I BB H", 1, 25, 3, 1, 3, 4, 2, 5, 0x80004005, 9, 5, 0) + b"body!"


def test_the_largest_message_is_the_protocols_maximum() -> None:
    largest = Frame(MessageType.VSS, bytes(MAX_MESSAGE - 20))
    assert Frame.decode(largest.encode()) == largest
    with pytest.raises(ValueError, match="over the limit"):
        Frame(MessageType.VSS, bytes(MAX_MESSAGE - 19)).encode()


@pytest.mark.parametrize("size", range(HEADER))
def test_less_than_the_headers_is_short(size: int) -> None:
    with pytest.raises(ShortMessageError):
        Frame.decode(bytes(size))
    with pytest.raises(ShortMessageError):
        Request.parse(bytes(size))


@pytest.mark.parametrize(
    ("pipe_size", "body_size"), [(19, 0), (29, 4), (24, 5), (2**32 - 1, 0), (24, 0xFFFF)]
)
def test_a_frame_with_lying_sizes_is_refused(pipe_size: int, body_size: int) -> None:
    raw = bytearray(Frame(MessageType.KVP, b"1234").encode())
    struct.pack_into("<I", raw, 4, pipe_size)
    struct.pack_into("<H", raw, 18, body_size)
    with pytest.raises(LyingLengthError):
        Frame.decode(bytes(raw))


@given(st.binary(min_size=HEADER, max_size=120))
def test_decoding_any_bytes_gives_a_frame_or_a_message_error(raw: bytes) -> None:
    try:
        frame = Frame.decode(raw)
    except LyingLengthError:
        return
    assert HEADER + len(frame.body) <= len(raw)


@given(frames)
def test_a_request_shows_what_the_frame_held(frame: Frame) -> None:
    raw = frame.encode()
    request = Request.parse(on_ring(raw))
    assert request.payload == on_ring(raw, b"\0")  # the rounding bytes are zeroed, nothing else changes
    assert (request.type, request.framework, request.version) == (frame.type, frame.framework, frame.version)
    assert (request.status, request.transaction_id, request.flags) == (
        frame.status,
        frame.transaction_id,
        frame.flags,
    )
    assert (request.pipe_size, request.body_size) == (20 + len(frame.body), len(frame.body))
    assert request.body.startswith(frame.body)
    assert not request.overrun
    expected = {"pipe-type": frame.pipe_type != 1, "flags": frame.flags != 3}
    assert request.anomalies == tuple(name for name, odd in expected.items() if odd)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_request_is_parsed_from_any_buffer_and_keeps_a_copy(kind: type) -> None:
    raw = bytearray(on_ring(Frame(MessageType.HEARTBEAT, b"12345").encode()))
    request = Request.parse(kind(raw))
    raw[HEADER] = 0
    assert request.body[:5] == b"12345"


@pytest.mark.parametrize(
    ("pipe_size", "body_size", "anomalies", "overrun"),
    [
        (28, 8, (), False),
        (26, 6, (), False),  # the end lies in the rounding: the rest is padding
        (5, 3, ("pipe-size", "body-size"), False),  # Linux answers it, so it is only noted
        (20, 0, ("pipe-size",), False),  # more came than is claimed
        (28, 4, ("body-size",), False),
        (33, 8, ("pipe-size", "body-size"), True),
        (2**32 - 1, 8, ("pipe-size", "body-size"), True),
        (28, 13, ("body-size",), True),
    ],
)
def test_sizes_that_do_not_fit_are_noted(
    pipe_size: int, body_size: int, anomalies: tuple[str, ...], overrun: bool
) -> None:
    raw = bytearray(on_ring(Frame(MessageType.HEARTBEAT, b"12345678").encode()))
    struct.pack_into("<I", raw, 4, pipe_size)
    struct.pack_into("<H", raw, 18, body_size)
    request = Request.parse(raw)
    assert request.anomalies == anomalies
    assert request.overrun is overrun


def test_a_message_that_ends_in_its_rounding_does_not_overrun() -> None:
    raw = Frame(MessageType.HEARTBEAT, b"123456789").encode()  # 37 bytes
    assert not Request.parse(on_ring(raw)).overrun
    assert not Request.parse(raw).overrun
    assert Request.parse(raw[:32]).overrun


def test_an_answer_is_the_request_edited_in_place() -> None:
    raw = on_ring(Frame(MessageType.VSS, b"abcdefghi", transaction_id=7, pipe_type=1).encode())
    answer = Request.parse(raw).answer(Status.FAIL, b"ABC", 16)
    expected = bytearray(raw[:37] + bytes(3))
    struct.pack_into("<H", expected, 18, 16)
    struct.pack_into("<I", expected, 20, Status.FAIL)
    expected[25] = 5
    expected[28:31] = b"ABC"
    assert answer == expected


@given(frames, st.binary(max_size=300))
def test_an_answer_is_as_long_as_what_was_received(frame: Frame, body: bytes) -> None:
    raw = on_ring(frame.encode())
    assert len(Request.parse(raw).answer(body=body)) == len(raw)


def test_a_version_reads_as_people_write_it() -> None:
    assert str(Version(3, 2)) == "3.2"
