# SPDX-License-Identifier: Apache-2.0
"""Pool files: their bytes, and what other programs and crashes may have left in them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import socket
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvring.errors import EffectError
from hvring.guest import pool as pool_module
from hvring.guest import pool_file, pool_index
from hvring.guest.identity import DomainName, Identity
from hvring.guest.pool_index import Index
from hvring.guest.pools import MAX_RECORDS, RECORD_SIZE, Pool, PoolLimitError, PoolStore
from hvring.guest.records import pair
from hvring.pending import Pending, settle


def record(key: str | bytes, value: str | bytes) -> bytes:
    raw_key = key.encode() if isinstance(key, str) else key
    raw_value = value.encode() if isinstance(value, str) else value
    return raw_key.ljust(512, b"\0") + raw_value.ljust(2048, b"\0")


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return Pool(tmp_path / ".kvp_pool_0")


texts = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=40)
keys = st.sampled_from(["a", "b", "ab", "ключ", "\U0001f511"]) | texts.filter(bool)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("set"), keys, texts),
        st.tuples(st.just("delete"), keys, st.just("")),
        st.tuples(st.just("get"), keys, st.just("")),
    ),
    max_size=30,
)


@pytest.mark.parametrize("kept", [pool_index.KEPT, 700, 0])
@settings(max_examples=70, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps)
def test_a_pool_is_a_dict_and_its_file_the_records_in_order(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    kept: int,
    steps: list[tuple[str, str, str]],
) -> None:
    monkeypatch.setattr(
        pool_index, "KEPT", kept
    )  # so that the keys of some files are kept, and not their values
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


def test_of_equal_keys_the_last_counts_and_a_change_leaves_one_or_none(pool: Pool) -> None:
    start = record("k", "1") + record("other", "x") + record("k", "2") + record("other", "y")
    Path(pool.path).write_bytes(start)
    assert pool.get("k") == "2"
    assert pool.items() == [("k", "1"), ("other", "x"), ("k", "2"), ("other", "y")]
    pool.set("k", "3")
    assert pool.items() == [("other", "x"), ("k", "3"), ("other", "y")]
    Path(pool.path).write_bytes(start)
    assert pool.delete("k")
    assert not pool.delete("k")
    assert pool.items() == [("other", "x"), ("other", "y")]
    assert pool.get("other") == "y"


@pytest.mark.parametrize("beside_others", [False, True])
def test_records_with_an_empty_key_are_not_there_and_the_next_change_drops_them(
    pool: Pool, beside_others: bool
) -> None:
    path = Path(pool.path)
    image = (
        bytes(RECORD_SIZE) + record("a", "1") + record("", "lost") + record("b", "2") + bytes(2 * RECORD_SIZE)
    )
    for change, expected in (
        (lambda: pool.set("b", "3"), [("a", "1"), ("b", "3")]),
        (lambda: pool.set("c", "3"), [("a", "1"), ("b", "2"), ("c", "3")]),
        (lambda: pool.delete("a"), [("b", "2")]),
    ):
        path.write_bytes(image)
        assert [pool.record(n) for n in range(3)] == [("a", "1"), ("b", "2"), None]
        assert (len(pool), pool.get("")) == (2, None)
        with path.open("rb") if beside_others else contextlib.nullcontext():
            change()
        assert path.read_bytes() == b"".join(record(*item) for item in expected)
        assert pool.items() == expected
    with pytest.raises(PoolLimitError, match="empty"):
        pool.set("", "x")


@pytest.mark.parametrize("beside_others", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_a_change_gives_the_same_file_alone_and_beside_others(
    pool: Pool, beside_others: bool, seed: int
) -> None:
    chance = random.Random(seed)
    model: dict[str, str] = {}
    Path(pool.path).touch()
    with open(pool.path, "rb") if beside_others else contextlib.nullcontext():
        inode = os.stat(pool.path).st_ino
        for _ in range(150):
            key = f"key{chance.randrange(20)}"
            if chance.random() < 0.3:
                assert pool.delete(key) == (model.pop(key, None) is not None)
            else:
                model[key] = chance.choice("abc") * chance.randrange(2048)
                pool.set(key, model[key])
            assert Path(pool.path).read_bytes() == b"".join(record(*item) for item in model.items())
            assert pool.get(key) == model.get(key)
        assert (os.stat(pool.path).st_ino == inode) or not beside_others
    assert os.listdir(os.path.dirname(pool.path)) == [".kvp_pool_0"]


def test_a_file_that_gets_another_inode_keeps_what_belongs_to_it(pool: Pool) -> None:
    for key in "abc":
        pool.set(key, "v")
    os.chmod(pool.path, 0o640)
    os.chown(pool.path, os.geteuid(), 12345) if os.geteuid() == 0 else None
    before = os.stat(pool.path)
    assert pool.delete("a")
    after = os.stat(pool.path)
    assert after.st_ino != before.st_ino
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)


def test_what_somebody_appends_to_a_file_that_has_just_been_replaced_is_kept(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As cloud-init: opened before, locked and written after the file has lost its name."""
    for key in "abc":
        pool.set(key, "v")
    really_rename = os.rename
    opened = []

    def rename(old: str, new: str) -> None:
        opened.append(open(new, "ab"))  # noqa: SIM115
        really_rename(old, new)

    really_sleep = time.sleep

    def write(_: float) -> None:
        if not opened[0].closed:
            fcntl.flock(opened[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
            opened[0].write(record("late", "1"))
            opened[0].close()
        really_sleep(0)

    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(pool_file.time, "sleep", write)
    assert pool.delete("a")
    monkeypatch.undo()
    assert pool.items() == [("b", "v"), ("c", "v"), ("late", "1")]


@pytest.mark.parametrize("moment", range(4))
@pytest.mark.parametrize("change", ["append", "replace", "replace two pages", "delete"])
def test_a_truncation_without_a_lock_at_any_moment_leaves_no_hole_and_no_memory_of_what_was(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, change: str, moment: int
) -> None:
    """cloud-init opens pool 1 with "w" once per boot, and takes no lock for that."""
    for n in range(5):
        pool.set(f"old{n}", "x" * 2000)
    looks = []
    really = {name: getattr(os, name) for name in ("pwrite", "fstat", "ftruncate")}

    def racing(name: str) -> Any:
        def call(fd: int, *arguments: Any) -> Any:
            if os.path.basename(os.readlink(f"/proc/self/fd/{fd}")).startswith(".kvp") and name == "pwrite":
                looks.append(name)
                if len(looks) == moment + 1:
                    os.truncate(pool.path, 0)
            return really[name](fd, *arguments)

        return call

    with monkeypatch.context() as patch, open(pool.path, "rb"):
        patch.setattr(os, "pwrite", racing("pwrite"))
        if change == "append":
            pool.set("new", "1")
        elif change == "delete":
            pool.delete("old2")
        else:
            pool.set("old3", "1" if change == "replace" else "y" * 2000)
    raced = len(looks) > moment
    image = Path(pool.path).read_bytes()
    whole = [image[n : n + RECORD_SIZE] for n in range(0, len(image), RECORD_SIZE)]
    assert pool.items() == [pair(one) for one in whole]
    pool.set("later", "1")
    image = Path(pool.path).read_bytes()
    assert all(image[n] for n in range(0, len(image), RECORD_SIZE)), "a record without a key"
    keys = [key for key, _ in pool.items()]
    if change != "delete":
        assert pool.get("new" if change == "append" else "old3") in ("1", "y" * 2000)
    assert keys.count("old0") == (not raced)


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
    assert pool.items() == [("K" * 512, "V" * 2048), ("\udcff\udcfe", "\udcc3"), ("ok", "1")]
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


def test_of_an_unchanged_file_that_is_long_only_the_record_is_read(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_index, "KEPT", 49 * (pool_index.OF_A_PAIR + 4))
    for n in range(50):
        pool.set(str(n), "v")
    os.utime(pool.path, ns=(0, 0))  # long ago: it cannot have changed since under the same stamp
    assert pool.get("7") == "v"
    read: list[int] = []
    really_read = os.pread
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", lambda fd, size, at: read.append(size) or really_read(fd, size, at))
        assert pool.get("7") == "v"
        assert pool.record(49) == ("49", "v")
        assert read == [RECORD_SIZE] * 2
        os.utime(pool.path, ns=(0, 1))
        assert pool.get("7") == "v"
    assert sum(read) == (50 + 3) * RECORD_SIZE


def test_an_unchanged_file_that_is_short_is_not_even_opened(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(50):
        pool.set(str(n), "v")
    pool.set("7", "w")  # our own changes are known, too
    really_open = os.open
    opened: list[object] = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", lambda path, *how: opened.append(path) or really_open(path, *how))
        assert (pool.get("7"), pool.get("8"), pool.get("none")) == ("w", "v", None)
        assert [pool.record(n) for n in (-1, 7, 49, 50)] == [None, ("7", "w"), ("49", "v"), None]
        assert opened == []
        with open(pool.path, "r+b") as file:  # somebody else, who takes no lock
            file.seek(7 * RECORD_SIZE)
            file.write(record("7", "x"))
        assert (pool.get("7"), opened != []) == ("x", True)


@pytest.mark.parametrize("how", ["value", "key", "append", "truncate", "replace", "remove", "fifo", "mode"])
def test_what_others_do_to_a_short_file_is_seen_at_once_though_its_values_are_known(
    pool: Pool, how: str
) -> None:
    path = Path(pool.path)
    for key in ("a", "k"):
        pool.set(key, "1")
    assert (pool.get("k"), pool.record(1)) == ("1", ("k", "1"))
    before = os.stat(path)
    if how == "value":
        path.write_bytes(record("a", "1") + record("k", "2"))
    elif how == "key":
        path.write_bytes(record("a", "1") + record("l", "1"))
    elif how == "append":
        with open(path, "ab") as file:
            file.write(record("k", "3"))
    elif how == "truncate":
        os.truncate(path, RECORD_SIZE)
    elif how == "replace":
        other = path.with_name("other")
        other.write_bytes(record("a", "1") + record("k", "4"))
        os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
        other.rename(path)
    elif how == "remove":
        path.unlink()
    elif how == "fifo":
        path.unlink()
        os.mkfifo(path)
    else:
        path.chmod(0o600)  # nothing changed that matters
    wanted = {"value": "2", "append": "3", "replace": "4", "mode": "1"}.get(how)
    if how == "fifo":
        with pytest.raises(EffectError, match="not a regular file"):
            pool.get("k")
    else:
        assert pool.get("k") == wanted
        assert dict(pool.items()).get("k") == wanted


def test_one_text_more_than_is_kept_of_a_file_changes_no_answer(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_index, "KEPT", 10 * pool_index.OF_A_PAIR)
    expected: dict[str, str] = {}
    for length in [*range(0, 200, 25), *range(200, 0, -25)]:
        for n in range(7):
            expected[str(n)] = str(n) * length
            pool.set(str(n), expected[str(n)])
            assert pool.get(str(n)) == expected[str(n)]
            assert [pool.record(place) for place in range(len(expected) + 1)] == [*expected.items(), None]


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
    read: list[int] = []
    really_read = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, at: read.append(size) or really_read(fd, size, at))
    for n in range(90, 110):
        pool.set(str(n), f"new {n}")
        assert pool.get(str(n)) == f"new {n}"
    assert written == [RECORD_SIZE] * 20
    assert set(read) <= {RECORD_SIZE, 2 * RECORD_SIZE}  # itself, and it with the one before it
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
    monkeypatch.setattr(pool_index.time, "time_ns", lambda: 6 * second)
    assert pool.get("k") == "v"
    read: list[object] = []
    really_read = Index.read
    monkeypatch.setattr(Index, "read", lambda fd: read.append(fd) or really_read(fd))
    assert pool.get("k") == "v"
    assert bool(read) is not trusted


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


def test_a_file_replaced_while_its_lock_is_waited_for_is_written_in_its_new_place(pool: Pool) -> None:
    pool.set("k", "1")
    Path(pool.path + ".new").write_bytes(record("other", "2"))
    with open(pool.path, "rb") as old:
        fcntl.flock(old, fcntl.LOCK_EX)
        pending = pool.begin_set("k", "3")
        assert isinstance(pending, Pending)
        os.rename(pool.path + ".new", pool.path)
    settle(pending)
    assert pool.items() == [("other", "2"), ("k", "3")]


def test_files_get_linux_modes_whatever_the_umask_and_keep_stricter_ones(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        store = PoolStore(tmp_path / "hyperv")
        store.prepare()
    finally:
        os.umask(before)
    assert os.stat(tmp_path / "hyperv").st_mode & 0o777 == 0o755
    files = sorted(os.listdir(tmp_path / "hyperv"))
    assert files == [f".kvp_pool_{n}" for n in range(5)]
    assert {os.stat(tmp_path / "hyperv" / name).st_mode & 0o777 for name in files} == {0o644}
    secret = tmp_path / "hyperv" / ".kvp_pool_0"
    secret.chmod(0o600)
    settle(store.set(0, "k", "v"))
    store.prepare()
    assert os.stat(secret).st_mode & 0o777 == 0o600


def test_a_store_keeps_its_pools_apart_and_refuses_others(tmp_path: Path) -> None:
    store = PoolStore(tmp_path / "made" / "on demand")
    for number in range(5):
        settle(store.set(number, "k", str(number)))
    assert [store.get(number, "k") for number in range(5)] == list("01234")
    assert store.record(3, 0) == ("k", "3")
    assert settle(store.delete(3, "k"))
    assert not settle(store.delete(3, "k"))
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


def test_what_a_kill_left_goes_when_the_pools_are_prepared(tmp_path: Path) -> None:
    store = PoolStore(tmp_path)
    store.prepare()
    path = tmp_path / ".kvp_pool_1"
    path.write_bytes(record("a", "1") + b"torn")
    path.with_name(".kvp_pool_1.new").write_bytes(b"half")
    store.prepare()
    assert path.read_bytes() == record("a", "1")
    assert sorted(os.listdir(tmp_path)) == [f".kvp_pool_{n}" for n in range(5)]


@pytest.mark.parametrize("what", ["directory", "fifo", "link", "loop", "socket"])
def test_what_stands_in_a_pools_place_is_told_and_hangs_nobody(tmp_path: Path, what: str) -> None:
    place = tmp_path / ".kvp_pool_1"
    if what == "directory":
        place.mkdir()
    elif what == "fifo":
        os.mkfifo(place)
    elif what == "socket":
        with socket.socket(socket.AF_UNIX) as odd:
            odd.bind(str(place))
    else:
        place.symlink_to(place if what == "loop" else "/nowhere/at/all")
    store = PoolStore(tmp_path)
    with pytest.raises(EffectError):
        store.prepare()
    for use in (
        lambda: settle(store.set(1, "k", "v")),
        lambda: settle(store.delete(1, "k")),
        lambda: store.get(1, "k"),
    ):
        if what == "link" and "set" not in use.__code__.co_names:
            assert not use()  # a file that is not there is an empty pool
            continue
        with pytest.raises(EffectError, match="kvp_pool_1"):
            use()
    settle(store.set(0, "k", "v"))
    assert store.get(0, "k") == "v"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errno.ENOSPC, 0x80070070),
        (errno.EROFS, 0x80070005),
        (errno.EACCES, 0x80070005),
        (errno.EIO, 0x80004005),
    ],
)
def test_a_pool_that_cannot_be_used_says_why(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, error: int, status: int
) -> None:
    pool.set("k", "v")
    pool = Pool(pool.path)  # which knows nothing of it yet

    def fail(*_: object) -> int:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "open", fail)
    for use in (
        lambda: pool.get("k"),
        lambda: pool.record(0),
        lambda: pool.set("k", "w"),
        lambda: pool.delete("k"),
    ):
        with pytest.raises(EffectError) as caught:
            use()
        assert caught.value.status == status


def test_all_pools_together_have_a_bound(tmp_path: Path) -> None:
    store = PoolStore(tmp_path, max_records=4)
    for pool, key in ((0, "a"), (3, "b"), (4, "c"), (0, "d")):
        settle(store.set(pool, key, "v"))
    for pool in range(5):
        with pytest.raises(PoolLimitError) as caught:
            settle(store.set(pool, "new", "v"))
        assert caught.value.status == 0x80070070
    settle(store.set(0, "a", "w"))
    settle(store.delete(3, "b"))
    settle(store.set(1, "new", "v"))


def test_a_file_that_is_no_pool_by_its_size_is_refused_at_once(pool: Pool) -> None:
    Path(pool.path).touch()
    os.truncate(pool.path, 1 << 40)
    with pytest.raises(EffectError, match="no pool"):
        pool.get("k")


def test_keys_that_no_host_can_be_shown_are_found_under_the_name_that_it_sees(pool: Pool) -> None:
    image = (
        record(b"caf\xe9", "latin") + record("k" * 512, "long") + record("\U0001f511" * 127 + "xx", "units")
    )
    seen = {"caf\ufffd": "latin", "k" * 255: "long", "\U0001f511" * 127 + "x": "units"}
    for name, value in seen.items():
        Path(pool.path).write_bytes(image)
        assert pool.get(name) == value
        for key, one in pool.items():  # and under its own
            assert pool.get(key) == one
        assert pool.delete(name)
        assert pool.get(name) is None
        assert len(pool) == 2


@pytest.mark.parametrize("kind", ["flock", "lockf"])
def test_a_lock_that_is_held_for_ever_delays_one_look_and_no_more(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    for n in range(20):
        pool.set(str(n), "v")
    now = [0.0]
    monkeypatch.setattr(pool_module.time, "monotonic", lambda: now[0])
    fresh = Pool(pool.path, timeout=2.0)
    with open(pool.path, "r+b") as file:  # by another description of the file: it excludes us, too
        if kind == "flock":
            fcntl.flock(file, fcntl.LOCK_EX)
        else:
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        outcome = fresh.begin_get("7")
        looks = 0
        while isinstance(outcome, Pending):
            assert outcome.at > now[0]
            now[0] = outcome.at
            outcome = outcome.resume()
            looks += 1
        assert (outcome, now[0]) == ("v", 2.0)
        assert looks < 150
        os.utime(pool.path)  # it may be anything now
        assert [fresh.begin_record(n) for n in range(21)] == [*((str(n), "v") for n in range(20)), None]
        outcome = fresh.begin_set("7", "w")
        with pytest.raises(EffectError, match="locked by another program"):
            while isinstance(outcome, Pending):
                now[0] = outcome.at
                outcome = outcome.resume()
        assert now[0] == 4.0
    assert fresh.begin_set("7", "w") is None
    assert fresh.get("7") == "w"


def test_a_pool_as_large_as_can_be_is_not_held_in_memory(pool: Pool) -> None:
    with open(pool.path, "wb") as file:
        for n in range(MAX_RECORDS):
            file.seek(n * RECORD_SIZE)
            file.write(f"{n:-<250}".encode())
        file.truncate(MAX_RECORDS * RECORD_SIZE)
    tracemalloc.start()
    try:
        assert pool.get(f"{7:-<250}") == ""
        assert pool.record(MAX_RECORDS - 1) == (f"{MAX_RECORDS - 1:-<250}", "")
        kept, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 8 << 20  # the keys; the file has 40 MiB
    assert most < 16 << 20
    with pytest.raises(PoolLimitError):
        pool.set("one more", "")
