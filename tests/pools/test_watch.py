# SPDX-License-Identifier: Apache-2.0
"""Watching and waiting: no change is lost, whatever becomes of the file and of its folder."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from hvring.pending import settle
from hvring.pools import Change, Pool, PoolTimeoutError, Watch

ROOT = Path(__file__).parents[2]
RECORD = 2560


def record(key: str, value: str) -> bytes:
    return key.encode().ljust(512, b"\0") + value.encode().ljust(2048, b"\0")


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return Pool(tmp_path / "hyperv" / ".kvp_pool_0", timeout=60)


def next_of(watch: Watch, count: int = 1) -> list[Change]:
    """So many changes; a watchdog of the whole test ends one that never come."""
    return [next(watch) for _ in range(count)]


def nothing_more(watch: Watch) -> bool:
    """After one more look at the pool that must not wait."""
    return settle(watch.begin(0.0)) == []


def test_each_change_is_told_once_with_what_was_before(pool: Pool) -> None:
    pool.set("old", "1")
    with pool.watch() as watch:
        pool.set("k", "v")
        assert next_of(watch) == [Change("k", "v", None)]
        pool.set("k", "w")
        assert next_of(watch) == [Change("k", "w", "v")]
        pool.delete("old")
        assert next_of(watch) == [Change("old", None, "1")]
        pool.exchange(None, [("k", "w"), ("a", "1"), ("a", "2")])
        assert next_of(watch, 2) == [Change("a", "1", None), Change("a", "2", "1")]
        pool.set("a", "2")  # the superseded record goes
        assert nothing_more(watch)
    assert list(watch) == []


def test_what_is_not_there_yet_is_watched_the_file_its_folder_and_the_folders_above(tmp_path: Path) -> None:
    pool = Pool(tmp_path / "a" / "b" / ".kvp_pool_0")
    with pool.watch() as watch:
        pool.set("k", "1")
        assert next_of(watch) == [Change("k", "1", None)]
        os.rename(tmp_path / "a", tmp_path / "gone")
        assert next_of(watch) == [Change("k", None, "1")]
        pool.set("k", "2")
        assert next_of(watch) == [Change("k", "2", None)]


def replaced(path: Path, data: bytes) -> None:
    path.with_name("beside").write_bytes(data)
    os.rename(path.with_name("beside"), path)


def rewritten(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def removed_and_made(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


@pytest.mark.parametrize("write", [replaced, rewritten, removed_and_made])
def test_a_file_that_is_replaced_or_truncated_is_followed(
    pool: Pool, write: Callable[[Path, bytes], None]
) -> None:
    pool.set("keep", "1")
    path = Path(pool.path)
    with pool.watch() as watch:
        for n in range(20):
            write(path, record("keep", "1") + record("n", str(n)))
            change = next_of(watch)[0]
            assert (change.key, change.value) == ("n", str(n))
        path.unlink()
        assert {change.key: change.value for change in next_of(watch, 2)} == {"keep": None, "n": None}


def test_a_link_to_a_file_elsewhere_is_followed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "pool").symlink_to(tmp_path / "there" / "real")
    real = Pool(tmp_path / "there" / "real")
    real.set("k", "1")
    with Pool(tmp_path / "pool").watch() as watch:
        real.set("k", "2")
        assert next_of(watch) == [Change("k", "2", "1")]


def test_who_truncates_and_writes_anew_takes_nothing_away_meanwhile(pool: Pool) -> None:
    pool.exchange(None, [("a", "1"), ("b", "2")])
    path = Path(pool.path)
    data = path.read_bytes()
    with pool.watch() as watch:
        with open(path, "r+b", buffering=0) as file:
            file.truncate(0)
            assert nothing_more(watch)  # looked, and waits for what comes
            file.write(data + record("c", "3"))
        assert next_of(watch) == [Change("c", "3", None)]
        with open(path, "r+b", buffering=0) as file:  # one that stays so is believed after a moment
            file.truncate(0)
            assert {change.key: change.value for change in next_of(watch, 3)} == dict.fromkeys("abc")


def test_what_happens_in_other_pools_wakes_nobody_to_read_this_one(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool.set("k", "v")
    with pool.watch() as watch:
        reads = []
        monkeypatch.setattr(type(watch._file), "begin_items", lambda self: reads.append(self) or [])
        Pool(Path(pool.path).with_name(".kvp_pool_1")).set("x", "y")
        assert nothing_more(watch)
        assert reads == []


WRITER = """
import sys
from hvring.pools import Pool
pool = Pool(sys.argv[1], timeout=60)
for n in range(int(sys.argv[2])):
    pool.set(f"{sys.argv[3]}{n % 7}", f"{n}" * 100)
    if n % 3 == 0:
        pool.delete(f"{sys.argv[3]}{(n + 3) % 7}")
pool.set(f"{sys.argv[3]}-end", "")
"""


def test_what_was_told_adds_up_to_what_is_there(pool: Pool) -> None:
    pool.set("k", "v")
    state = dict(pool.items())
    with pool.watch() as watch:
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, pool.path, "120", name],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
            for name in "ab"
        ]

        def hear(changes: Sequence[Change]) -> bool:
            for change in changes:
                assert state.get(change.key) == change.was
                if change.value is None:
                    del state[change.key]
                else:
                    state[change.key] = change.value
            return bool(changes)

        while not {"a-end", "b-end"} <= state.keys():
            hear([next(watch)])
        assert [writer.wait() for writer in writers] == [0, 0]
        while hear(settle(watch.begin(0.0))):
            pass
    assert state == dict(pool.items())


def test_an_event_loop_watches_and_waits_too(pool: Pool) -> None:
    async def main() -> None:
        with pool.watch() as watch:
            waiting = asyncio.create_task(pool.wait_async("late", 60))
            pool.set("k", "v")
            async for change in watch:
                assert change == Change("k", "v", None)
                break
            pool.set("late", "now")
            assert await waiting == "now"
            assert await anext(watch) == Change("late", "now", None)
            with pytest.raises(PoolTimeoutError):
                await pool.wait_async("never", 0.01)
            cancelled = asyncio.create_task(anext(watch))  # type: ignore[arg-type]
            await asyncio.sleep(0)
            cancelled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cancelled
            pool.set("k", "w")
            assert await anext(watch) == Change("k", "w", "v")

    gc.collect()  # what other tests left
    before = os.listdir("/proc/self/fd")
    asyncio.run(main())
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_value_that_is_there_is_not_waited_for(pool: Pool) -> None:
    pool.set("k", "1")
    assert pool.wait("k", 0) == "1"
    with pytest.raises(PoolTimeoutError, match="no 'other' within 0 seconds"):
        pool.wait("other", 0)


def test_the_parts_of_a_first_boots_configuration_are_joined_when_they_are_all_there(pool: Pool) -> None:
    parts = [("ignition.config.1", "b" * 900), ("ignition.config.0", "a" * 900), ("ignition.config.2", "c")]

    def host() -> None:
        for part in parts:
            pool.set(*part)

    thread = threading.Thread(target=host)
    thread.start()
    found = pool.wait("ignition.config", 60, quiet=3.0)
    thread.join()
    assert found == "a" * 900 + "b" * 900 + "c"
    pool.delete("ignition.config.1")
    with pytest.raises(PoolTimeoutError, match=r"ignition\.config\.1 is missing"):
        pool.wait("ignition.config", 0.01, quiet=0)


def test_waiting_sleeps_and_reads_the_pool_when_it_changed(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool.set("k", "v")
    reads = []
    read = type(pool._file).begin_items
    monkeypatch.setattr(type(pool._file), "begin_items", lambda self: reads.append(1) or read(self))
    other = Pool(pool.path, timeout=60)
    later = threading.Timer(0.3, other.set, ("late", "x"))
    later.start()
    assert pool.wait("late", 60) == "x"
    later.join()
    assert len(reads) <= 8  # the first, and at most one for each notice of one change
