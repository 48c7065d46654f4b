# SPDX-License-Identifier: Apache-2.0
"""Pool files: their bytes, and what other programs and crashes may have left in them."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvring.errors import EffectError
from hvring.guest import locks, pools
from hvring.guest.identity import DomainName, Identity
from hvring.guest.pools import RECORD_SIZE, Pool, PoolLimitError, PoolStore


def record(key: str | bytes, value: str | bytes) -> bytes:
    raw_key = key.encode() if isinstance(key, str) else key
    raw_value = value.encode() if isinstance(value, str) else value
    return raw_key.ljust(512, b"\0") + raw_value.ljust(2048, b"\0")


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return Pool(tmp_path / ".kvp_pool_0")


texts = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=40)
keys = st.sampled_from(["", "a", "b", "ab", "ключ", "\U0001f511"]) | texts
steps = st.lists(
    st.one_of(
        st.tuples(st.just("set"), keys, texts),
        st.tuples(st.just("delete"), keys, st.just("")),
        st.tuples(st.just("get"), keys, st.just("")),
    ),
    max_size=30,
)


@settings(max_examples=200, deadline=None)
@given(steps=steps)
def test_a_pool_is_a_dict_and_its_file_the_records_in_order(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, str, str]]
) -> None:
    path = tmp_path_factory.mktemp("pool") / "file"
    pool = Pool(path)
    model: dict[str, str] = {}
    for what, key, value in steps:
        if what == "set":
            pool.set(key, value)
            model[key] = value
        elif what == "delete":
            assert pool.delete(key) == (model.pop(key, None) is not None)
        else:
            assert pool.get(key) == model.get(key)
        assert pool.items() == list(model.items())
        image = path.read_bytes() if path.exists() else b""
        assert image == b"".join(record(*item) for item in model.items())
    assert len(pool) == len(model)
    assert [pool.record(i) for i in range(len(model) + 1)] == [*model.items(), None]
    assert pool.record(-1) is None


def test_a_missing_file_is_an_empty_pool(pool: Pool) -> None:
    assert (len(pool), pool.get("a"), pool.record(0), pool.items()) == (0, None, None, [])
    assert not pool.delete("a")
    assert not os.path.exists(pool.path)


def test_the_largest_key_and_value_fit_and_one_byte_more_does_not(pool: Pool) -> None:
    pool.set("k" * 511, "v" * 2047)
    assert pool.get("k" * 511) == "v" * 2047
    for key, value in (("k" * 512, ""), ("é" * 256, ""), ("k", "v" * 2048), ("a\0b", ""), ("k", "\0")):
        with pytest.raises(PoolLimitError):
            pool.set(key, value)
    for lone in ("\ud800", "\udc80"):
        with pytest.raises(PoolLimitError):
            pool.set("k", lone)
    assert len(pool) == 1


def test_the_limits_are_effect_errors_and_value_errors() -> None:
    assert issubclass(PoolLimitError, EffectError)
    assert issubclass(PoolLimitError, ValueError)


def test_a_full_pool_still_takes_new_values_for_its_keys(tmp_path: Path) -> None:
    pool = Pool(tmp_path / "pool", max_records=2)
    pool.set("a", "1")
    pool.set("b", "2")
    with pytest.raises(PoolLimitError, match="full"):
        pool.set("c", "3")
    pool.set("a", "4")
    assert pool.items() == [("a", "4"), ("b", "2")]


def test_a_shorter_value_leaves_nothing_of_the_longer_one(pool: Pool) -> None:
    pool.set("k", "a long secret")
    pool.set("k", "x")
    assert Path(pool.path).read_bytes() == record("k", "x")


def test_only_the_record_that_changes_is_written(pool: Pool) -> None:
    strange = record(b"k1\0stale", b"v1\0stale") + record("k2", "v2") + record(b"k3\0stale", b"v3")
    Path(pool.path).write_bytes(strange)
    inode = os.stat(pool.path).st_ino
    pool.set("k2", "new")
    image = Path(pool.path).read_bytes()
    assert image == strange[:RECORD_SIZE] + record("k2", "new") + strange[2 * RECORD_SIZE :]
    assert os.stat(pool.path).st_ino == inode


def test_of_equal_keys_the_first_counts(pool: Pool) -> None:
    Path(pool.path).write_bytes(record("k", "1") + record("k", "2"))
    assert pool.get("k") == "1"
    pool.set("k", "3")
    assert pool.items() == [("k", "3"), ("k", "2")]
    assert pool.delete("k")
    assert pool.items() == [("k", "2")]


@pytest.mark.parametrize("torn", [1, 511, 512, 2559])
def test_a_torn_record_at_the_end_is_not_seen_and_is_repaired_by_the_next_change(
    pool: Pool, torn: int
) -> None:
    path = Path(pool.path)
    path.write_bytes(record("a", "1") + record("torn", "x" * 2047)[:torn])
    assert (len(pool), pool.record(1), pool.get("torn")) == (1, None, None)
    pool.set("a", "2")
    assert path.read_bytes() == record("a", "2")
    path.write_bytes(record("a", "1") + record("torn", "x" * 2047)[:torn])
    pool.set("b", "2")
    assert path.read_bytes() == record("a", "1") + record("b", "2")
    path.write_bytes(record("a", "1") + record("torn", "x" * 2047)[:torn])
    assert pool.delete("a")
    assert path.read_bytes() == b""


def test_hostile_records_are_read_without_reading_too_far(pool: Pool) -> None:
    Path(pool.path).write_bytes(b"K" * 512 + b"V" * 2048 + record(b"\xff\xfe", b"\xc3") + record("ok", "1"))
    assert pool.items() == [("K" * 512, "V" * 2048), ("\ufffd\ufffd", "\ufffd"), ("ok", "1")]
    assert pool.get("ok") == "1"


def test_changes_of_another_program_are_seen_at_once(pool: Pool) -> None:
    pool.set("k", "0")
    assert pool.get("k") == "0"
    for n in range(1, 200):  # same size, and far more often than the time stamp of the file changes
        with open(pool.path, "r+b") as file:
            file.write(record("k", str(n)))
        assert pool.get("k") == str(n)


def test_a_change_that_leaves_the_same_time_stamp_is_seen(pool: Pool) -> None:
    pool.set("k", "1")
    stamp = os.stat(pool.path).st_mtime_ns + 10**10  # newer than the look at it: it may still change
    os.utime(pool.path, ns=(stamp, stamp))
    assert pool.get("k") == "1"
    Path(pool.path).write_bytes(record("k", "2"))
    os.utime(pool.path, ns=(stamp, stamp))
    assert pool.get("k") == "2"


def test_an_unchanged_file_is_not_read_again(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool.set("k", "v")
    os.utime(pool.path, ns=(0, 0))  # long ago: it cannot have changed since under the same stamp
    assert pool.get("k") == "v"
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", lambda *_, **__: pytest.fail("opened"))
        assert pool.get("k") == "v"
        assert pool.record(0) == ("k", "v")
    os.utime(pool.path, ns=(0, 1))
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pool.get("k")


def test_a_change_costs_one_record_however_long_the_file_is(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(pool.path).write_bytes(b"".join(record(str(n), "") for n in range(100)))
    os.utime(pool.path, ns=(0, 1))
    assert pool.get("0") == ""
    written: list[int] = []
    really_write = os.pwrite

    def write(fd: int, data: bytes, offset: int) -> int:
        written.append(len(data))
        return really_write(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", write)
    monkeypatch.setattr(os, "preadv", lambda *_: pytest.fail("read"))
    for n in range(90, 110):
        pool.set(str(n), f"new {n}")
        assert pool.get(str(n)) == f"new {n}"
    assert written == [RECORD_SIZE] * 20
    monkeypatch.undo()
    assert pool.items() == Pool(pool.path).items()
    assert len(pool) == 110


def test_a_change_of_another_program_right_after_ours_is_seen(pool: Pool) -> None:
    for n in range(200):  # many of them in the same tick of the clock that stamps files
        pool.set("k", str(n))
        with open(pool.path, "r+b") as file:
            file.write(record("k", f"not {n}"))
        assert pool.get("k") == f"not {n}"


def test_two_that_change_a_file_in_turns_see_each_others_changes(pool: Pool) -> None:
    other = Pool(pool.path)
    for n in range(200):
        pool.set("k", str(n))
        assert other.get("k") == str(n)
        other.set("k", f"not {n}")
        assert pool.get("k") == f"not {n}"


def test_a_file_whose_stamp_we_may_not_set_is_read_again(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "utime", refuse)
    for n in range(20):
        pool.set("k", str(n))
        with open(pool.path, "r+b") as file:
            file.write(record("k", f"not {n}"))
        assert pool.get("k") == f"not {n}"


@pytest.mark.parametrize(("fraction", "trusted"), [(0, False), (1, True)])
def test_a_stamp_in_whole_seconds_is_not_trusted_as_soon_as_a_finer_one(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, fraction: int, trusted: bool
) -> None:
    second = 10**9
    pool.set("k", "v")
    os.utime(pool.path, ns=(0, 5 * second + fraction))
    monkeypatch.setattr(pools.time, "time_ns", lambda: 6 * second)
    assert pool.get("k") == "v"
    opened: list[object] = []
    really_open = os.open
    monkeypatch.setattr(os, "open", lambda *a, **k: opened.append(a) or really_open(*a, **k))
    assert pool.get("k") == "v"
    assert bool(opened) is not trusted


def test_a_file_that_was_replaced_or_removed_is_noticed(pool: Pool) -> None:
    pool.set("k", "1")
    assert pool.get("k") == "1"
    replacement = Path(pool.path + ".new")
    replacement.write_bytes(record("k", "2"))
    replacement.rename(pool.path)
    assert pool.get("k") == "2"
    os.unlink(pool.path)
    assert pool.get("k") is None
    pool.set("k", "3")
    assert Path(pool.path).read_bytes() == record("k", "3")


def test_a_file_replaced_while_its_lock_is_waited_for_is_written_in_its_new_place(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool.set("k", "1")
    Path(pool.path + ".new").write_bytes(record("other", "2"))
    with open(pool.path, "rb") as old:
        fcntl.flock(old, fcntl.LOCK_EX)

        def nap(_: float) -> None:
            os.rename(pool.path + ".new", pool.path)
            fcntl.flock(old, fcntl.LOCK_UN)

        monkeypatch.setattr(locks.time, "sleep", nap)
        pool.set("k", "3")
    assert pool.items() == [("other", "2"), ("k", "3")]


def test_files_get_linux_modes_whatever_the_umask_and_keep_stricter_ones(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        store = PoolStore(tmp_path / "hyperv")
        store.create()
    finally:
        os.umask(before)
    assert os.stat(tmp_path / "hyperv").st_mode & 0o777 == 0o755
    files = sorted(os.listdir(tmp_path / "hyperv"))
    assert files == [f".kvp_pool_{n}" for n in range(5)]
    assert {os.stat(tmp_path / "hyperv" / name).st_mode & 0o777 for name in files} == {0o644}
    secret = tmp_path / "hyperv" / ".kvp_pool_0"
    secret.chmod(0o600)
    store.set(0, "k", "v")
    store.create()
    assert os.stat(secret).st_mode & 0o777 == 0o600


def test_a_store_keeps_its_pools_apart_and_refuses_others(tmp_path: Path) -> None:
    store = PoolStore(tmp_path / "made" / "on demand")
    for number in range(5):
        store.set(number, "k", str(number))
    assert [store.get(number, "k") for number in range(5)] == list("01234")
    assert store.record(3, 0) == ("k", "3")
    assert store.delete(3, "k")
    assert not store.delete(3, "k")
    for number in (-1, 5, 255):
        with pytest.raises(EffectError, match="no pool"):
            store.get(number, "k")


def test_a_store_makes_the_automatic_keys_up(tmp_path: Path) -> None:
    identity = Identity(domain_name=DomainName(lambda host: f"{host}.example.test"))
    store = PoolStore(tmp_path, identity=identity)
    assert len(store.automatic()) == 10
    assert store.ip_info("no such MAC") is None
    assert not store.adapter("{00000000-0000-0000-0000-000000000000}")


def test_a_file_that_cannot_be_used_is_an_effect_error(tmp_path: Path) -> None:
    os.mkdir(tmp_path / "directory")
    pool = Pool(tmp_path / "directory")
    with pytest.raises(EffectError, match="directory"):
        pool.set("k", "v")
    with pytest.raises(EffectError, match="No such file"):
        Pool(tmp_path / "missing" / "pool").set("k", "v")
    (tmp_path / "link").symlink_to(tmp_path / "missing" / "pool")
    with pytest.raises(EffectError):
        Pool(tmp_path / "link").set("k", "v")


def test_a_full_disk_is_told_as_such(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool.set("k", "v")

    def no_space(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", no_space)
    with pytest.raises(EffectError) as caught:
        pool.set("k", "w")
    assert caught.value.status == 0x80070070
    monkeypatch.undo()
    assert pool.get("k") == "v"


def test_the_record_size_is_the_one_of_the_in_tree_daemon() -> None:
    assert struct.calcsize("512s2048s") == RECORD_SIZE == 2560
