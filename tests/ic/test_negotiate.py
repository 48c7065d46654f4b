# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvring.errors import ReplyError, ShortMessageError
from hvring.ic import (
    Frame,
    MessageType,
    Negotiated,
    NegotiateReply,
    NegotiateRequest,
    Request,
    Status,
    Version,
)
from hvring.ic.negotiate import answer, choose

OWN_FRAMEWORKS = (Version(3, 0), Version(1, 0))
OWN_VERSIONS = (Version(3, 2), Version(3, 1), Version(1, 0))
V10, V30, V31, V32 = Version(1, 0), Version(3, 0), Version(3, 1), Version(3, 2)

versions = st.builds(Version, st.integers(0, 0xFFFF), st.integers(0, 0xFFFF))
lists = st.lists(versions, max_size=100).map(tuple)


def received(body: bytes) -> Request:
    raw = Frame(MessageType.NEGOTIATE, body, transaction_id=0x5A).encode()
    return Request.parse(raw + bytes(-len(raw) % 8))


@given(lists, lists)
def test_a_request_comes_back_as_it_was(
    frameworks: tuple[Version, ...], offered: tuple[Version, ...]
) -> None:
    request = NegotiateRequest(frameworks, offered)
    assert NegotiateRequest.decode(request.encode()) == request


@given(versions, versions)
def test_a_reply_comes_back_as_it_was(framework: Version, version: Version) -> None:
    reply = NegotiateReply(framework, version)
    assert len(reply.encode()) == 16
    assert NegotiateReply.decode(reply.encode()) == reply


@pytest.mark.parametrize(("frameworks", "offered", "size"), [(2, 1, 48), (2, 3, 56), (2, 4, 60)])
def test_a_request_has_the_size_of_the_protocol(frameworks: int, offered: int, size: int) -> None:
    body = NegotiateRequest((V10,) * frameworks, (V30,) * offered).encode()
    assert len(Frame(MessageType.NEGOTIATE, body).encode()) == size


def test_more_versions_than_a_guest_reads_are_not_encoded() -> None:
    with pytest.raises(ValueError, match="more than 100 versions"):
        NegotiateRequest((V10,) * 101, ()).encode()


@pytest.mark.parametrize("counts", [(0, 0), (1, 0), (0, 1), (2, 1), (1, 2)])
def test_a_reply_that_agrees_to_anything_but_one_of_each_is_an_error(counts: tuple[int, int]) -> None:
    with pytest.raises(ReplyError):
        NegotiateReply.decode(struct.pack("<HHI", *counts, 0) + bytes(8))


def test_a_short_reply_is_an_error() -> None:
    with pytest.raises(ShortMessageError):
        NegotiateReply.decode(bytes(15))


@pytest.mark.parametrize(
    ("frameworks", "offered", "chosen"),
    [
        ((V10, V30), (V10, V30, V31, V32), Negotiated(V30, V32)),
        ((V30, V10), (V32, V10), Negotiated(V30, V32)),
        ((V10,), (V10,), Negotiated(V10, V10)),
        ((V30,), (V10, V30), Negotiated(V30, V10)),
        ((Version(2, 0),), (V10,), None),
        ((V30,), (V30,), None),
        ((), (), None),
    ],
)
def test_the_newest_version_that_both_know_wins(
    frameworks: tuple[Version, ...], offered: tuple[Version, ...], chosen: Negotiated | None
) -> None:
    body = NegotiateRequest(frameworks, offered).encode()
    assert choose(body, OWN_FRAMEWORKS, OWN_VERSIONS) == chosen
    assert answer(received(body), OWN_FRAMEWORKS, OWN_VERSIONS)[1] == chosen


@given(lists, lists)
def test_whatever_is_agreed_on_was_offered_by_both(
    frameworks: tuple[Version, ...], offered: tuple[Version, ...]
) -> None:
    body = NegotiateRequest((*frameworks[:99], V30), (*offered[:99], V31)).encode()
    assert choose(body, OWN_FRAMEWORKS, OWN_VERSIONS) is not None


def test_success_is_answered_with_one_of_each_and_the_rest_left_in_place() -> None:
    body = NegotiateRequest((V10, V30), (V10, V30, V31, V32)).encode()
    raw, _ = answer(received(body), OWN_FRAMEWORKS, OWN_VERSIONS)
    assert struct.unpack_from("<HIBB", raw, 18) == (16, Status.OK, 0x5A, 5)
    assert NegotiateReply.decode(raw[28:]) == NegotiateReply(V30, V32)
    assert raw[44:60] == body[16:]
    assert NegotiateReply.decode(Frame.decode(raw).body) == NegotiateReply(V30, V32)


@pytest.mark.parametrize(
    ("body", "slots"),
    [
        (NegotiateRequest((Version(2, 0),), (V10, V30)).encode(), (Version(1, 0), Version(2, 0))),
        (NegotiateRequest((V30,), (Version(9, 9),) * 3).encode(), (V30, Version(3, 0))),
        (struct.pack("<HHI", 101, 1, 0) + bytes(408), (Version(101, 0), Version(1, 0))),
        (struct.pack("<HHI", 1, 101, 0) + bytes(408), (Version(1, 0), Version(101, 0))),
        (struct.pack("<HHI", 2, 3, 0) + bytes(16), (Version(2, 0), Version(3, 0))),
        (struct.pack("<HHI", 0xFFFF, 0xFFFF, 0) + bytes(8), (Version(0xFFFF, 0), Version(0xFFFF, 0))),
    ],
)
def test_failure_leaves_in_the_slots_what_linux_leaves_there(
    body: bytes, slots: tuple[Version, Version]
) -> None:
    raw, agreed = answer(received(body), OWN_FRAMEWORKS, OWN_VERSIONS)
    assert agreed is None
    assert struct.unpack_from("<HIBB", raw, 18) == (16, Status.FAIL, 0x5A, 5)
    assert raw[28:32] == bytes(4)
    assert (
        Version(*struct.unpack_from("<HH", raw, 36)),
        Version(*struct.unpack_from("<HH", raw, 40)),
    ) == slots


@pytest.mark.parametrize("size", [28, 31])
def test_a_request_without_counts_is_echoed_as_failed(size: int) -> None:
    raw = Frame(MessageType.NEGOTIATE, bytes(size - 28)).encode()
    out, agreed = answer(Request.parse(raw), OWN_FRAMEWORKS, OWN_VERSIONS)
    expected = bytearray(raw)
    expected[20:24] = Status.FAIL.to_bytes(4, "little")
    expected[25] = 5
    assert (out, agreed) == (bytes(expected), None)
    assert choose(bytes(size - 28), OWN_FRAMEWORKS, OWN_VERSIONS) is None


@given(st.binary(max_size=64))
def test_any_body_gets_an_answer_of_its_own_length(body: bytes) -> None:
    request = received(body)
    raw, agreed = answer(request, OWN_FRAMEWORKS, OWN_VERSIONS)
    assert len(raw) == len(request.payload)
    assert agreed == choose(request.body, OWN_FRAMEWORKS, OWN_VERSIONS)
