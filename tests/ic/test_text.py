# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvring.errors import MessageError
from hvring.ic import ShutdownRequest, text
from hvring.ic.timesync import from_unix_ns, to_unix_ns


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=40))
def test_text_comes_back_from_its_field(words: str) -> None:
    assert text.unpack(text.pack(words, 200)) == words
    assert text.unpack_terminated(text.pack(words, text.size(words))) == words


@given(st.text(max_size=40), st.integers(1, 20))
def test_a_cut_text_fits_and_is_a_beginning(words: str, units: int) -> None:
    short = text.cut(words, 2 * units)
    assert text.size(short) <= 2 * units
    clean = words.split("\0")[0].encode("utf-16-le", "replace").decode("utf-16-le")
    assert clean.startswith(short)
    assert len(clean.encode("utf-16-le")) <= 2 * units - 2 or text.size(short) >= 2 * units - 2


def test_a_cut_never_halves_a_pair() -> None:
    assert text.cut("a\U0001f600", 6) == "a"
    assert text.cut("a\U0001f600", 8) == "a\U0001f600"


def test_what_follows_the_nul_does_not_matter() -> None:
    assert text.unpack(b"a\0\0\0\0\xd8") == "a"


@pytest.mark.parametrize("raw", [b"a", b"\0\xd8", b"\0\xdc", b"\0\xd8a\0", b"\0\xdc\0\xd8"])
def test_broken_utf16_is_an_error(raw: bytes) -> None:
    with pytest.raises(MessageError):
        text.unpack(raw)


def test_a_missing_nul_is_an_error_only_where_it_is_required() -> None:
    assert text.unpack(b"a\0b\0") == "ab"
    with pytest.raises(MessageError):
        text.unpack_terminated(b"a\0b\0")


@pytest.mark.parametrize("words", ["a\0b", "\ud800"])
def test_text_that_cannot_be_told_apart_again_is_not_packed(words: str) -> None:
    with pytest.raises(ValueError, match=r"NUL inside|not Unicode"):
        text.pack(words, 64)


def test_text_that_does_not_fit_is_not_packed() -> None:
    assert len(text.pack("abc", 8)) == 8
    with pytest.raises(ValueError, match="too long"):
        text.pack("abcd", 8)


def message(raw: bytes) -> str:
    return ShutdownRequest.decode(bytes(12) + raw.ljust(2048, b"\0")).text


@pytest.mark.parametrize("words", ["", "going down", "n\u00e4chster Neustart \u20ac", "\u4e16\u754c"])
def test_a_shutdown_message_is_read_as_utf8(words: str) -> None:
    assert message(words.encode()) == words


@pytest.mark.parametrize("words", ["going down", "n\u00e4chster Neustart \u20ac", "\u0416\u0416", "a"])
def test_a_shutdown_message_is_read_as_utf16(words: str) -> None:
    assert message(words.encode("utf-16-le")) == words


@given(st.binary(max_size=2048))
def test_no_shutdown_message_is_too_broken_to_read(raw: bytes) -> None:
    assert "\0" not in message(raw)


@pytest.mark.parametrize("words", ["x" * 2048, "a\0b", "\ud800"])
def test_a_shutdown_message_that_cannot_be_written_is_an_error(words: str) -> None:
    with pytest.raises(ValueError, match="the text"):
        ShutdownRequest(text=words).encode()


@given(st.integers(0, 2**64 - 1))
def test_times_come_back_from_unix_time(hyperv: int) -> None:
    assert from_unix_ns(to_unix_ns(hyperv)) == hyperv


def test_the_epochs_are_369_years_apart() -> None:
    assert to_unix_ns(0) == -11_644_473_600 * 10**9
    assert from_unix_ns(0) == 116_444_736_000_000_000
    assert from_unix_ns(199) == from_unix_ns(100) == from_unix_ns(0) + 1
