# SPDX-License-Identifier: Apache-2.0
"""The translators against the kernel's own conversions: what arrives is what was said, or is refused."""

from __future__ import annotations

import struct

import pytest
from hv_utils_model.text import put_utf16, terminated, utf8
from hypothesis import example, given
from hypothesis import strategies as st

from hvring.errors import MessageError
from hvring.ic import (
    CancelCopy,
    CompleteCopy,
    KvpDelete,
    KvpEnumerate,
    KvpGet,
    KvpIpInfo,
    KvpItem,
    KvpSet,
    KvpValue,
    StartCopy,
    VssRequest,
    WriteChunk,
)
from hvring.ic.hv_utils import DIALECTS, texts
from hvring.ic.unreadable import Unreadable

KVP, VSS, FCOPY = DIALECTS["kvp"], DIALECTS["vss"], DIALECTS["fcopy"]
SIZES = {"kvp": (7432,), "vss": (12,), "fcopy": (36, 64, 1088, 6196)}
MESSAGES = {
    "kvp": (KvpGet, KvpSet, KvpDelete, KvpEnumerate, KvpIpInfo),
    "vss": (VssRequest,),
    "fcopy": (StartCopy, WriteChunk, CompleteCopy, CancelCopy),
}

#: Texts of a host, of every length in UTF-8 around where the kernel cuts.
UNITS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
TEXTS = st.one_of(
    st.text(UNITS, max_size=40),
    st.builds(
        lambda unit, bytes_, end: unit * (bytes_ // len(unit.encode())) + end,
        st.sampled_from("kä€🚀"),
        st.integers(240, 270) | st.integers(495, 520) | st.integers(2030, 2060),
        st.text(UNITS, max_size=3),
    ),
)


def handed_out(text: str, units: int, limit: int) -> bytes:
    """What the kernel makes of a host's text, in a field of ``units`` and with ``limit`` bytes to spare."""
    return utf8(text.encode("utf-16-le"), units, limit)


@given(key=TEXTS, value=TEXTS)
@example(key="k" * 255, value="€" * 682)
def test_a_key_and_a_value_are_what_the_host_said_or_refused(key: str, value: str) -> None:
    key, value = key[:127], value[:511]  # what the host's fields hold, in whatever units
    raw_key, raw_value = handed_out(key, 256, 511), handed_out(value, 1024, 2047)
    sizes = struct.pack("<III", 0, len(raw_key) + 1, len(raw_value) + 1)
    message = b"\1\0\0\0" + sizes + raw_key.ljust(512, b"\0") + raw_value.ljust(2048, b"\0")
    decoded = KVP.decode(message.ljust(7432, b"\0"))
    if isinstance(decoded, Unreadable):
        assert decoded.operation == 1
        assert isinstance(decoded.error, texts.CutTextError)
        assert len(raw_key) > 507 or len(raw_value) > 2043
    else:
        assert decoded == KvpSet(0, key, value)


@given(name=TEXTS, path=TEXTS, flags=st.integers(0, 3), size=st.integers(0, 2**64 - 1))
def test_a_file_is_put_where_the_host_said_or_nowhere(name: str, path: str, flags: int, size: int) -> None:
    raw_name, raw_path = handed_out(name, 260, 259), handed_out(path, 260, 259)
    message = bytes(36) + raw_name.ljust(520, b"\0") + raw_path.ljust(520, b"\0")
    decoded = FCOPY.decode(message + struct.pack("<IQ", flags, size))
    if isinstance(decoded, Unreadable):
        assert decoded.operation == 0
        assert isinstance(decoded.error, texts.CutTextError)
        assert len(raw_name) > 255 or len(raw_path) > 255
    else:
        assert decoded == StartCopy(name, path, flags, size)


@pytest.mark.parametrize("name", list(DIALECTS))
@given(data=st.data())
def test_whatever_is_handed_out_is_read_or_said_to_be_unreadable(name: str, data: st.DataObject) -> None:
    head = data.draw(st.sampled_from([bytes([n]) + bytes(3) for n in range(9)]) | st.binary(max_size=40))
    size = data.draw(st.sampled_from(SIZES[name]) | st.integers(0, 8192))
    rest = data.draw(st.sampled_from([b"\0", b"A", b"\xff", b"\x80\0", b"\xed\xa0\x80\0"]))
    message = (head + rest * size)[:size]
    decoded = DIALECTS[name].decode(message)
    assert isinstance(decoded, (*MESSAGES[name], Unreadable))
    if isinstance(decoded, Unreadable):
        assert isinstance(decoded.error, MessageError)
        if name == "kvp":  # with status 0 the kernel would make an empty pair of what was not asked for
            with pytest.raises(ValueError, match="no answer to"):
                KVP.encode(decoded, 0, None)
    assert 0 < DIALECTS[name].patience(decoded) < 30 or decoded == VssRequest(5, message[8:])


@given(key=TEXTS, value=TEXTS)
def test_the_host_gets_the_beginning_of_what_is_answered(key: str, value: str) -> None:
    answer = KVP.encode(KvpEnumerate(0, 0), 0, KvpItem(0, 0, key, value))
    assert len(answer) == 7432
    for text, at, field in ((key, 20, 512), (value, 532, 2048)):
        body = bytearray(2 * field)
        units = put_utf16(terminated(answer, at, field), body, 0, field // 2 - 2)
        assert units >= 0
        seen = bytes(body[: 2 * units]).decode("utf-16-le")
        assert text.startswith(seen)
        whole = len(text.encode()) < field and len(text.encode("utf-16-le")) // 2 <= field // 2 - 2
        assert seen == text or not whole
    got = KVP.encode(KvpGet(0, "k"), 0, KvpValue(0, "k", value))
    assert got[532:2580] == answer[532:2580]


@given(number=st.integers(0, 2**32 - 1))
def test_a_status_is_all_that_goes_with_a_failure(number: int) -> None:
    word = struct.pack("<I", number)
    assert FCOPY.encode(None, number, None) == word
    if number:
        assert KVP.encode(KvpGet(0, "k"), number, None) == word.ljust(7432, b"\0")
    kept = number & 0xFF not in (0x80, 0x81)
    assert VSS.encode(None, number, None) == (word if kept else b"\5\x40\0\x80").ljust(12, b"\0")


@pytest.mark.parametrize("name", list(DIALECTS))
def test_a_greeting_is_what_the_kernel_says_or_refused(name: str) -> None:
    dialect = DIALECTS[name]
    good = {
        "kvp": bytes([100, 0, 0, 0]) + b"3.1".ljust(7428, b"\0"),
        "vss": b"\x81\0\0\0",
        "fcopy": b"\1\0\0\0",
    }[name]
    assert dialect.registered(good) == ("3.1" if name == "kvp" else "")
    for bad in (b"", good[:-1], good + b"\0", b"\2" + good[1:]):
        with pytest.raises(MessageError):
            dialect.registered(bad)
