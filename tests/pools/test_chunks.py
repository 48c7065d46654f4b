# SPDX-License-Identifier: Apache-2.0
"""Long values in the ways of Ignition, azure-init and cloud-init."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvring.errors import EffectError
from hvring.pools import Convention, Limits, MissingChunkError, PoolLimitError, join, split

texts = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=200)


@given(value=texts, size=st.integers(4, 40), convention=st.sampled_from(Convention))
def test_what_is_split_is_joined_again_in_parts_that_fit(
    value: str, size: int, convention: Convention
) -> None:
    if convention is Convention.CLOUD_INIT:
        value = json.dumps({"name": "n", "msg": value}, separators=(",", ":"))
        size += 60
    limits = Limits(20, size)
    chunks = split("key", value, convention, limits)
    assert all(len(part.encode()) <= size for _, part in chunks)
    assert join([("other", "x"), *chunks, ("key.", "y"), ("key|x", "z")], "key", convention) == value
    if convention is Convention.CLOUD_INIT:
        assert [json.loads(part)["msg_i"] for _, part in chunks] == list(range(len(chunks)))


def test_parts_in_any_order_the_newest_of_each_and_letters_that_others_cut() -> None:
    items = [
        ("k.1", "\udc9f\udcb9"),
        ("k.2", "!"),
        ("k.0", "old"),
        ("k.0", "a\udcf0\udc9f\udc92".replace("\udc92", "")),
    ]
    items[0] = ("k.1", "\udc92\udcbe")
    assert join(items, "k", Convention.IGNITION) == "a\U0001f4be!"
    assert join(items, "nothing", Convention.IGNITION) is None


def test_a_missing_part_is_named() -> None:
    items = [("k.0", "a"), ("k.2", "c"), ("k.01", "no part"), ("k.x", "none"), ("k.²", "none")]
    with pytest.raises(MissingChunkError, match=r"k\.1 is missing, k\.2 is there"):
        join(items, "k", Convention.IGNITION)


def test_what_cloud_init_cuts_amid_an_escape_is_joined() -> None:
    items = [
        ("e|0", '{"name":"n","msg_i":0,"msg":"caf\\u00"}'),
        ("e|1", '{"name":"n","msg_i":1,"msg":"e9 \\"q\\" \\"}'),
        ("e|2", '{"name":"n","msg_i":2,"msg":"n"}'),
    ]
    assert json.loads(join(items, "e", Convention.CLOUD_INIT) or "") == {"name": "n", "msg": 'café "q" \n'}


@pytest.mark.parametrize("value", ["", "no", '"no"', "[]", '{"msg": ["no"]}'])
def test_what_is_no_event_is_not_split_as_one(value: str) -> None:
    with pytest.raises(PoolLimitError, match="cloud-init splits"):
        split("k", value, Convention.CLOUD_INIT)


def test_what_cloud_init_did_not_split_is_an_error_and_no_nonsense() -> None:
    with pytest.raises(EffectError, match="none that cloud-init splits"):
        join([("k|0", "text")], "k", Convention.CLOUD_INIT)


def test_a_part_that_is_too_small_ends_and_says_so() -> None:
    with pytest.raises(PoolLimitError, match="too small"):
        split("k", "\U0001f4be" * 2, Convention.IGNITION, Limits(9, 3))
    with pytest.raises(PoolLimitError, match="no room"):
        split("k", '{"msg":"text"}', Convention.CLOUD_INIT, Limits(9, 20))
    with pytest.raises(PoolLimitError, match="the key has"):
        split("k" * 9, "v" * 30, Convention.IGNITION, Limits(9, 3))
