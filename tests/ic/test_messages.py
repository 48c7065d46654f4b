# SPDX-License-Identifier: Apache-2.0
"""Every message: round trip, the sizes of PROTOCOL Appendix A, and bodies that end too early."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from itertools import cycle, islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvring import ic
from hvring.errors import LyingLengthError, MessageError, ShortMessageError
from hvring.ic import Frame, KvpOperation, MessageType, ValueType, VssOperation
from hvring.ic.kvp import decode_value, encode_value

u8, u16, u32, u64 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32, 64))
ids = st.binary(min_size=16, max_size=16)


def texts(units: int) -> st.SearchStrategy[str]:
    """Unicode without NUL that fits ``units`` UTF-16 units, NUL not counted."""
    letters = st.characters(exclude_characters="\0", exclude_categories=("Cs",))
    return st.text(letters, max_size=units).filter(lambda s: len(s.encode("utf-16-le")) // 2 <= units)


keys, values = texts(255), texts(1023)
lun = st.builds(ic.Lun, u8, ids, u8, u8, u8)
luns = st.lists(lun, max_size=260).map(tuple)
typed = st.one_of(
    st.tuples(values, st.sampled_from([ValueType.SZ, ValueType.EXPAND_SZ])),
    st.tuples(u32, st.just(ValueType.U32)),
    st.tuples(u64, st.sampled_from([ValueType.U64_LINUX, ValueType.U64])),
)
# Up to 260 of each, of which few are different: drawn one by one they would be too many for a full table to come up.
paired_luns = st.builds(
    lambda n, some: tuple(zip(*islice(cycle(some), n), strict=True)) if n else ((), ()),
    st.integers(0, 260),
    st.lists(st.tuples(lun, lun), min_size=1, max_size=7),
)
MESSAGES: dict[str, st.SearchStrategy[Any]] = {
    "heartbeat": st.builds(ic.Heartbeat, u64, u32, st.binary(max_size=40)),
    "shutdown": st.builds(
        ic.ShutdownRequest, u32, u32, u32, texts(500).filter(lambda s: all(c >= " " for c in s))
    ),
    "time v3": st.builds(ic.TimeSampleV3, u64, u8, u64, u64),
    "time v4": st.builds(ic.TimeSampleV4, u64, u64, u8, u8, u8),
    "kvp get": st.builds(ic.KvpGet, u8, keys),
    "kvp set": st.builds(lambda p, k, v: ic.KvpSet(p, k, *v), u8, keys, typed),
    "kvp delete": st.builds(ic.KvpDelete, u8, keys),
    "kvp enumerate": st.builds(ic.KvpEnumerate, u8, u32),
    "kvp item": st.builds(lambda p, i, k, v: ic.KvpItem(p, i, k, *v), u8, u32, keys, typed),
    "kvp value": st.builds(lambda p, k, v: ic.KvpValue(p, k, *v), u8, keys, typed),
    "kvp ip": st.builds(ic.KvpIpInfo, u8, u8, texts(127), u8, u8, values, values, texts(511), values),
    "vss": st.builds(ic.VssRequest, u8, st.binary(min_size=4, max_size=100)),
    "vss flags": st.builds(ic.VssFlags, u8, u32),
    "vss freeze": st.builds(ic.VssFreeze, u32, u32, luns),
    "vss auto recover": st.builds(lambda t, f, ls: ic.VssAutoRecover(t, f, *ls), u32, u32, paired_luns),
    "fcopy start": st.builds(ic.StartCopy, texts(259), texts(259), u32, u64, ids, ids),
    "fcopy write": st.builds(ic.WriteChunk, st.integers(0, 2**62), st.binary(max_size=6144), ids, ids),
    "fcopy complete": st.builds(ic.CompleteCopy, ids, ids),
    "fcopy cancel": st.builds(ic.CancelCopy, ids, ids),
}


@pytest.mark.parametrize("name", MESSAGES)
@given(data=st.data())
def test_a_message_comes_back_as_it_was(name: str, data: st.DataObject) -> None:
    message = data.draw(MESSAGES[name])
    raw = message.encode()
    assert type(message).decode(raw) == message
    assert type(message).decode(raw + bytes(-len(raw) % 8)) == message or name in ("heartbeat", "vss")


SIZES: list[tuple[MessageType, Any, int]] = [
    (MessageType.HEARTBEAT, ic.Heartbeat(1, rest=bytes(4)), 44),
    (MessageType.HEARTBEAT, ic.Heartbeat(1), 68),
    (MessageType.SHUTDOWN, ic.ShutdownRequest(), 2088),
    (MessageType.TIMESYNC, ic.TimeSampleV3(0), 56),
    (MessageType.TIMESYNC, ic.TimeSampleV4(0, 0), 52),
    (MessageType.KVP, ic.KvpGet(0, "k"), 2608),
    (MessageType.KVP, ic.KvpSet(0, "k", "v"), 2608),
    (MessageType.KVP, ic.KvpDelete(0, "k"), 2608),
    (MessageType.KVP, ic.KvpEnumerate(2, 0), 2608),
    (MessageType.KVP, ic.KvpItem(2, 0, "k", "v"), 2608),
    (MessageType.KVP, ic.KvpValue(2, "k", "v"), 2608),
    (MessageType.KVP, ic.KvpIpInfo(KvpOperation.GET_IP, 1, "00"), 7456),
    (MessageType.VSS, ic.VssRequest(VssOperation.THAW), 60),
    (MessageType.VSS, ic.VssFlags(VssOperation.HOT_BACKUP), 60),
    (MessageType.VSS, ic.VssFreeze(), 6288),
    (MessageType.VSS, ic.VssAutoRecover(), 12528),
    (MessageType.FCOPY, ic.StartCopy("a", "/b"), 1116),
    (MessageType.FCOPY, ic.WriteChunk(0, b"x"), 6224),
    (MessageType.FCOPY, ic.CompleteCopy(), 64),
    (MessageType.FCOPY, ic.CancelCopy(), 64),
]


@pytest.mark.parametrize(("kind", "message", "payload"), SIZES)
def test_a_message_has_the_size_of_the_protocol(kind: MessageType, message: Any, payload: int) -> None:
    assert len(Frame(kind, message.encode()).encode()) == payload


SHORTEST: list[tuple[type, int]] = [
    (ic.Heartbeat, 8),
    (ic.ShutdownRequest, 2060),
    (ic.TimeSampleV3, 25),
    (ic.TimeSampleV4, 17),
    (ic.KvpGet, 2576),
    (ic.KvpSet, 2576),
    (ic.KvpDelete, 520),
    (ic.KvpEnumerate, 2580),
    (ic.KvpItem, 2580),
    (ic.KvpValue, 2576),
    (ic.KvpIpInfo, 7428),
    (ic.VssRequest, 12),
    (ic.VssFlags, 12),
    (ic.VssFreeze, 6260),
    (ic.VssAutoRecover, 12500),
    (ic.StartCopy, 1088),
    (ic.WriteChunk, 52),
    (ic.CompleteCopy, 36),
    (ic.CancelCopy, 36),
]


@pytest.mark.parametrize(("message", "size"), SHORTEST)
def test_a_body_one_byte_too_short_is_refused(message: Any, size: int) -> None:
    with pytest.raises(ShortMessageError):
        message.decode(bytes(size - 1))


@pytest.mark.parametrize("message", [m for m, _ in SHORTEST])
@given(body=st.binary(max_size=64), size=st.integers(0, 13000))
def test_decoding_any_bytes_gives_a_message_or_a_message_error(message: Any, body: bytes, size: int) -> None:
    try:
        message.decode((body * (size // len(body) + 1))[:size] if body else bytes(size))
    except MessageError:
        pass


@pytest.mark.parametrize("size", [8, 11])
def test_a_heartbeat_without_a_state_is_of_state_unknown(size: int) -> None:
    assert ic.Heartbeat.decode((7).to_bytes(size, "little")).state == ic.ApplicationState.UNKNOWN


def test_the_heartbeat_behind_the_highest_number_is_zero() -> None:
    assert ic.Heartbeat(2**64 - 1, 2, b"abc").next() == ic.Heartbeat(0, 2, b"abc")


@pytest.mark.parametrize(
    "broken",
    [
        lambda: ic.VssFreeze.decode(ic.VssFreeze().encode()[:16] + b"\5\1\0\0" + bytes(6240)),
        lambda: ic.WriteChunk.decode(ic.WriteChunk(0, bytes(100)).encode()[:151]),
    ],
)
def test_counts_and_sizes_over_the_limit_are_lies(broken: Callable[[], object]) -> None:
    with pytest.raises(LyingLengthError):
        broken()


@pytest.mark.parametrize(
    "ours",
    [
        ic.VssFreeze(luns=(ic.Lun(),) * 261),
        ic.VssFreeze(luns=(ic.Lun(controller=bytes(15)),)),
        ic.VssAutoRecover(luns=(ic.Lun(),)),
        ic.WriteChunk(0, bytes(6145)),
        ic.KvpGet(0, "k" * 256),
        ic.KvpGet(0, "a\0b"),
        ic.KvpDelete(0, "\ud800"),
        ic.KvpSet(0, "k", "v" * 1024),
        ic.KvpItem(0, 0, "k", "v" * 1024),
        ic.KvpIpInfo(4, 1, "a" * 128),
        ic.StartCopy("a" * 260, "/"),
        ic.StartCopy("a", "/", service_id=bytes(17)),
        ic.CompleteCopy(bytes(15)),
        ic.ShutdownRequest(text="x" * 2048),
        ic.ShutdownRequest(text="\ud800"),
        ic.NegotiateRequest((ic.Version(1, 0),) * 101, ()),
        ic.NegotiateRequest((ic.Version(1, 2**16),), ()),
        ic.Frame(MessageType.KVP, bytes(13312)),
    ],
)
def test_what_an_honest_caller_cannot_encode_is_its_own_fault(ours: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the words differ
        ours.encode()


@pytest.mark.parametrize("name", [*MESSAGES, "frame"])
@given(data=st.data())
def test_no_number_is_too_large_or_negative_without_a_word(name: str, data: st.DataObject) -> None:
    """Every field that is a number, of every message: never an error of the module that packs it."""
    good = ic.Frame(MessageType.KVP) if name == "frame" else data.draw(MESSAGES[name])
    numbers = [f.name for f in fields(good) if isinstance(getattr(good, f.name), int)]
    for field in numbers:
        for wrong in (-(2**63) - 1, 2**64):
            with pytest.raises(ValueError, match=r"number|does not go into"):
                replace(good, **{field: wrong}).encode()


def patched(message: Any, offset: int, new: bytes) -> bytes:
    raw = bytearray(message.encode())
    raw[offset : offset + len(new)] = new
    return bytes(raw)


SET = ic.KvpSet(0, "key", "value")
ITEM = ic.KvpItem(2, 0, "key", "value")
VALUE = ic.KvpValue(0, "key", "value")


@pytest.mark.parametrize(
    ("message", "offset", "new"),
    [
        (SET, 4, b"\x63\0\0\0"),  # a value type that nobody knows
        (SET, 8, b"\x02\x02\0\0"),  # a key longer than its field
        (SET, 8, b"\xff\xff\xff\xff"),
        (SET, 12, b"\x02\x08\0\0"),  # a value longer than its field
        (SET, 8, b"\x07\0\0\0"),  # half a unit
        (SET, 16, b"\x00\xd8"),  # half a pair
        (SET, 528, b"a\0\x00\xdc"),
        (ic.KvpSet(0, "k", 5, ValueType.U32), 12, b"\x03\0\0\0"),  # a number in three bytes
        (ic.KvpSet(0, "k", 5, ValueType.U64), 12, b"\x04\0\0\0"),
        (ic.KvpDelete(0, "key"), 4, b"\x01\x02\0\0"),
        (ITEM, 12, b"\x06\0\0\0"),  # a reply's key without its NUL
        (ITEM, 12, b"\x02\x02\0\0"),
        (ITEM, 16, b"\x0a\0\0\0"),
        (VALUE, 12, b"\x0a\0\0\0"),
        (VALUE, 12, b"\x01\x08\0\0"),
        (ic.KvpIpInfo(4, 1, "00"), 2, b"\x00\xdc"),
        (ic.StartCopy("a", "/"), 36, b"\x00\xdc"),
        (ic.StartCopy("a", "/"), 36, b"a\0" * 260),  # no NUL in the whole field
        (ic.WriteChunk(0, b"x"), 40, b"\xff" * 8),  # offset -1
        (ic.WriteChunk(0, b"x"), 40, b"\xff" * 7 + b"\x7f"),  # the end is beyond any file's
        (ic.WriteChunk(0, b"x"), 48, b"\x01\x18\0\0"),
    ],
)
def test_fields_that_cannot_be_true_are_refused(message: Any, offset: int, new: bytes) -> None:
    type(message).decode(message.encode())
    with pytest.raises(MessageError):
        type(message).decode(patched(message, offset, new))


@pytest.mark.parametrize(
    ("value", "value_type"),
    [(1, ValueType.SZ), ("1", ValueType.U32), (2**32, ValueType.U32), (-1, ValueType.U64)],
)
def test_a_value_must_suit_its_type(value: str | int, value_type: int) -> None:
    with pytest.raises(ValueError, match="does not go into a value of type"):
        ic.KvpSet(0, "k", value, value_type).encode()


@given(typed)
def test_a_value_comes_back_as_it_was(pair: tuple[str | int, int]) -> None:
    assert decode_value(encode_value(*pair), pair[1]) == pair[0]


def test_a_key_without_nul_in_its_size_is_read() -> None:
    assert ic.KvpSet.decode(patched(SET, 8, b"\x06\0\0\0")) == SET


def test_the_last_write_may_come_without_the_unused_rest() -> None:
    chunk = ic.WriteChunk(5, b"abc")
    assert ic.WriteChunk.decode(chunk.encode()[:55]) == chunk
