# SPDX-License-Identifier: Apache-2.0
"""What is done in C for ordinary messages is what their classes do, and everything else is left to these."""

from __future__ import annotations

import contextlib
import dataclasses
import pickle
import struct
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hvring.errors import MessageError
from hvring.ic import _kvp
from hvring.ic.kvp import (
    BODY_SIZE,
    KEY_FIELD,
    VALUE_FIELD,
    KvpDelete,
    KvpEnumerate,
    KvpGet,
    KvpItem,
    KvpOperation,
    KvpSet,
    KvpValue,
    ValueType,
)

CLASSES: dict[int, Any] = {0: KvpGet, 1: KvpSet, 2: KvpDelete, 3: KvpEnumerate}
SIZES = st.sampled_from([0, 1, 2, 3, 4, 5, 8, 12, 510, 511, 512, 513, 2046, 2048, 2049, 2**31, 2**32 - 1])
HEAD = 28  # a message has so much before its body

letters = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=80)
ascii_texts = st.text(st.characters(min_codepoint=1, max_codepoint=127), max_size=255)
numbers = st.integers(-1, 300) | st.sampled_from([2**32 - 1, 2**32, 2**64])


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Bodies as hosts send them, and with each field as hosts never do."""
    operation = draw(st.integers(0, 6))
    raw = draw(st.binary(max_size=24) | letters.map(lambda text: text.encode("utf-16-le")))
    value = draw(st.binary(max_size=24) | letters.map(lambda text: text.encode("utf-16-le")))
    fit = draw(st.booleans())
    kind = draw(st.sampled_from([0, 1, 2, 3, 4, 8, 11, 2**32 - 1]))
    key_size = len(raw) + 2 if fit else draw(SIZES)
    value_size = draw(st.sampled_from([len(value) + 2, 4, 8])) if fit else draw(SIZES)
    stale = draw(st.sampled_from([b"\0", b"\xff", b"\xd8", b"a"]))
    key_field = (raw + b"\0\0").ljust(KEY_FIELD, stale)[:KEY_FIELD]
    value_field = (value + b"\0\0").ljust(VALUE_FIELD, stale)[:VALUE_FIELD]
    head = struct.pack("<BBH", operation, draw(st.integers(0, 255)), draw(st.sampled_from([0, 0xFFFF])))
    if operation == KvpOperation.DELETE:
        body = head + struct.pack("<I", key_size) + key_field
    elif operation == KvpOperation.ENUMERATE:
        body = head + struct.pack("<I", draw(SIZES))
    else:
        body = head + struct.pack("<III", kind, key_size, value_size) + key_field + value_field
    body = body.ljust(BODY_SIZE, stale)
    return body[: draw(st.sampled_from([BODY_SIZE] * 8 + [0, 1, 2, 519, 520, 2575, 2576, 2579]))]


def plain(body: bytes) -> Any:
    """As its class decodes it; None for what there is no class for, or what that refuses."""
    with contextlib.suppress(MessageError):
        return CLASSES[body[0]].decode(body) if len(body) > 1 and body[0] in CLASSES else None
    return None


@settings(max_examples=1500, deadline=None)
@given(body=bodies(), start=st.integers(0, 40))
@example(body=KvpSet(0, "k", "v").encode()[:2576], start=28)
@example(body=KvpDelete(0, "k").encode()[:520], start=28)
def test_what_is_decoded_in_c_is_what_the_class_decodes(body: bytes, start: int) -> None:
    message = b"\xaa" * start + body
    assert _kvp.decode(message, start) == plain(body)
    assert repr(_kvp.decode(memoryview(message), start)) == repr(plain(body))
    assert repr(_kvp.decode(bytearray(message), start)) == repr(plain(body))


@settings(max_examples=300, deadline=None)
@given(key=letters, value=letters, number=st.integers(0, 2**64 - 1), pool=st.integers(0, 255))
def test_whatever_a_host_can_ask_is_decoded_in_c(key: str, value: str, number: int, pool: int) -> None:
    asked: list[Any] = [
        KvpGet(pool, key),
        KvpDelete(pool, key),
        KvpEnumerate(pool, number % 2**32),
        KvpSet(pool, key, value),
        KvpSet(pool, key, value, ValueType.EXPAND_SZ),
        KvpSet(pool, key, number % 2**32, ValueType.U32),
        KvpSet(pool, key, number, ValueType.U64_LINUX),
        KvpSet(pool, key, number, ValueType.U64),
    ]
    for message in asked:
        assert _kvp.decode(bytes(HEAD) + message.encode(), HEAD) == message


@pytest.mark.parametrize("start", [-1, -28, BODY_SIZE + 1, 2**62])
def test_nothing_is_read_outside_of_the_message(start: int) -> None:
    assert _kvp.decode(KvpGet(0, "k").encode(), start) is None


def test_what_is_no_buffer_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        _kvp.decode("text", 0)  # type: ignore[arg-type]


def by_its_class(message: KvpValue | KvpItem) -> bytes | None:
    with contextlib.suppress(ValueError):
        return message.encode()
    return None


@settings(max_examples=1000, deadline=None)
@given(
    key=letters | ascii_texts,
    found=letters | st.text(max_size=20) | ascii_texts.map(lambda text: 5 * text),
    pool=numbers,
    index=numbers,
)
@example(key="k" * 255, found="v" * 1023, pool=0, index=0)
@example(key="k" * 256, found="v", pool=0, index=0)
@example(key="k", found="v" * 1024, pool=0, index=0)
@example(key="k\0", found="v", pool=0, index=0)
@example(key="", found="", pool=255, index=2**32 - 1)
def test_what_is_encoded_in_c_is_what_the_class_encodes(key: str, found: str, pool: int, index: int) -> None:
    for message in (_kvp.value(pool, key, found), _kvp.item(pool, index, key, found)):
        made = _kvp.encode(message)
        expected = by_its_class(message)
        assert made is None or made == expected
        if expected is not None and (key + found).isascii():
            assert made is not None


def test_other_values_and_other_types_are_left_to_their_classes() -> None:
    class Odd(str):
        __slots__ = ()

    class MyValue(KvpValue):
        __slots__ = ()

    others: list[object] = [
        KvpValue(0, "k", 7, ValueType.U32),
        KvpValue(0, "k", "v", ValueType.EXPAND_SZ),
        KvpValue(0, Odd("k"), "v"),
        KvpValue(0, "k", Odd("v")),
        KvpValue(True, "k", "v"),
        KvpValue(None, "k", "v"),  # type: ignore[arg-type]
        KvpItem(0, 0.5, "k", "v"),  # type: ignore[arg-type]
        MyValue(0, "k", "v"),
        KvpGet(0, "k"),
        None,
    ]
    assert [_kvp.encode(other) for other in others] == [None] * len(others)


def test_what_is_made_in_c_is_as_frozen_and_as_whole_as_what_python_makes() -> None:
    pairs: list[tuple[Any, Any]] = [
        (_kvp.value(1, "k", "v"), KvpValue(1, "k", "v")),
        (_kvp.item(1, 2, "k", "v"), KvpItem(1, 2, "k", "v")),
        (_kvp.decode(KvpSet(1, "k", "v").encode(), 0), KvpSet.decode(KvpSet(1, "k", "v").encode())),
    ]
    for made, same in pairs:
        assert (made, hash(made), repr(made)) == (same, hash(same), repr(same))
        assert dataclasses.asdict(made) == dataclasses.asdict(same)
        assert pickle.loads(pickle.dumps(made)) == same
        assert dataclasses.replace(made, key="l") == dataclasses.replace(same, key="l")
        with pytest.raises(dataclasses.FrozenInstanceError):
            made.key = "l"
