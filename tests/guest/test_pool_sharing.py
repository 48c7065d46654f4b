# SPDX-License-Identifier: Apache-2.0
"""Pool files shared with other programs, each of which knows only one of the two families of locks."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hvring.errors import EffectError
from hvring.guest.pools import RECORD_SIZE, Pool
from hvring.reasons import Reason

ROOT = Path(__file__).parents[2]

HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "r+b")
getattr(fcntl, {"flock": "flock", "fcntl": "lockf"}[sys.argv[2]])(file, getattr(fcntl, sys.argv[3]))
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture(params=["flock", "fcntl"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("mode", ["LOCK_EX", "LOCK_SH"])
def test_another_programs_lock_of_either_family_is_waited_for_but_not_for_ever(
    tmp_path: Path, family: str, mode: str
) -> None:
    pool = Pool(tmp_path / "pool", timeout=0.05)
    pool.set("k", "1")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, pool.path, family, mode], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(EffectError, match="locked by another program") as raised:
            pool.set("k", "2")
        assert raised.value.reason is Reason.POOL_LOCKED
        assert pool.get("k") == "1"  # still the file's content
        assert Pool(pool.path, timeout=0.05).get("k") == "1"  # nobody can keep a reader out
        later = Pool(pool.path, timeout=60)
        waiting = threading.Thread(target=later.set, args=("k", "3"))
        waiting.start()
    finally:
        holder.communicate()
    waiting.join(60)
    assert pool.get("k") == "3"


def test_a_program_with_a_lock_of_either_family_is_kept_out_while_a_record_is_written(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = Pool(tmp_path / "pool")
    pool.set("k", "1")
    pool.set("l", "1")
    attempts: list[str] = []
    attempt = (
        "import fcntl, sys; file = open(sys.argv[1], 'r+b')\n"
        "try: getattr(fcntl, {'flock': 'flock', 'fcntl': 'lockf'}[sys.argv[2]])"
        "(file, fcntl.LOCK_EX | fcntl.LOCK_NB); print('got it')\n"
        "except BlockingIOError: print('kept out')"
    )
    really_write = os.pwrite

    def write(fd: int, data: bytes, offset: int) -> int:
        # Another descriptor of the file is opened and closed: a plain POSIX lock would be lost by that.
        os.close(os.open(pool.path, os.O_RDONLY))
        command = [sys.executable, "-c", attempt, pool.path, family]
        attempts.append(subprocess.check_output(command, text=True).strip())
        return really_write(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", write)
    pool.set("k", "2")
    pool.delete("k")
    assert attempts == ["kept out", "kept out"]
    monkeypatch.undo()
    command = [sys.executable, "-c", attempt, pool.path, family]
    assert subprocess.check_output(command, text=True).strip() == "got it"


WRITER = """
import sys
from hvring.guest.pools import Pool
pool, name, rounds = Pool(sys.argv[1], timeout=60), sys.argv[2], int(sys.argv[3])
for n in range(rounds):
    pool.set(f"{name}{n}", name * 100)
    pool.set("shared", name * 2000)
    if n % 3 == 0:
        pool.delete(f"{name}{n}")
"""


def test_two_processes_and_a_reader_share_a_pool(tmp_path: Path) -> None:
    rounds = 60
    pool = Pool(tmp_path / "pool", timeout=60)
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, pool.path, name, str(rounds)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        for name in "ab"
    ]
    while any(writer.poll() is None for writer in writers):
        items = pool.items()
        assert len({key for key, _ in items}) == len(items)
        assert dict(items).get("shared", "a" * 2000) in ("a" * 2000, "b" * 2000)
    assert [writer.wait() for writer in writers] == [0, 0]
    expected = {f"{name}{n}": name * 100 for name in "ab" for n in range(rounds) if n % 3}
    found = dict(pool.items())
    assert found.pop("shared") in ("a" * 2000, "b" * 2000)
    assert found == expected
    assert os.stat(pool.path).st_size == (len(expected) + 1) * RECORD_SIZE


def test_threads_may_share_a_pool_and_may_not_lose_each_others_writes(tmp_path: Path) -> None:
    path = tmp_path / "pool"
    shared = Pool(path, timeout=60)

    def work(name: str, pool: Pool) -> None:
        for n in range(40):
            pool.set(f"{name}{n}", name)

    threads = [threading.Thread(target=work, args=(name, shared)) for name in "ab"]
    threads += [threading.Thread(target=work, args=(name, Pool(path, timeout=60))) for name in "cd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert dict(shared.items()) == {f"{name}{n}": name for name in "abcd" for n in range(40)}


# As the in-tree daemon does it, but for one thing: it keeps its lock from the reading to the end of the writing.
REWRITER = """
import fcntl, os, sys
RECORD = 2560
path, name, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
lock = os.open(path, os.O_RDWR)
def change(edit):
    fcntl.lockf(lock, fcntl.LOCK_EX)
    raw = os.pread(lock, os.fstat(lock).st_size, 0)
    assert len(raw) % RECORD == 0, len(raw)
    records = edit([raw[at : at + RECORD] for at in range(0, len(raw), RECORD)])
    os.ftruncate(lock, 0)
    for at, record in enumerate(records):
        half = len(record) // 2
        os.pwrite(lock, record[:half], at * RECORD)
        os.pwrite(lock, record[half:], at * RECORD + half)
    fcntl.lockf(lock, fcntl.LOCK_UN)
def record(n, value):
    return f"{name}{n}".encode().ljust(512, b"\\0") + value.encode().ljust(2048, b"\\0")
for n in range(rounds):
    change(lambda records: [*records, record(n, name * 100)])
    if n % 3 == 0:
        gone = record(n, "")[:512]
        change(lambda records: [one for one in records if one[:512] != gone])
"""

# As cloud-init does it.
APPENDER = """
import fcntl, sys
path, name, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
for n in range(rounds):
    with open(path, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(f"{name}{n}".encode().ljust(512, b"\\0") + (name * 100).encode().ljust(2048, b"\\0"))
        file.flush()
        fcntl.flock(file, fcntl.LOCK_UN)
"""


@pytest.mark.parametrize("peer", ["rewriters", "appenders"])
def test_of_eight_writers_that_keep_their_locks_nobody_loses_a_record_to_us_or_we_to_them(
    tmp_path: Path, peer: str
) -> None:
    rounds = 120
    pool = Pool(tmp_path / "pool", timeout=60)
    pool.create()
    theirs = REWRITER if peer == "rewriters" else APPENDER
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", program, pool.path, name, str(rounds)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        for program, names in ((WRITER, "abcd"), (theirs, "wxyz"))
        for name in names
    ]
    while any(writer.poll() is None for writer in writers):
        for key, value in pool.items():  # whole at any moment
            assert value in {key[0] * 100, "".join({v * 2000 for v in "abcd" if value[:1] == v})}
    assert [writer.wait() for writer in writers] == [0] * 8
    items = pool.items()
    found = dict(items)
    assert len(found) == len(items) == os.stat(pool.path).st_size // RECORD_SIZE
    assert os.stat(pool.path).st_size % RECORD_SIZE == 0
    assert found.pop("shared") in {name * 2000 for name in "abcd"}
    kept = range(rounds)
    expected = {f"{name}{n}": name * 100 for name in "abcd" for n in kept if n % 3}
    expected |= {f"{name}{n}": name * 100 for name in "wxyz" for n in kept if n % 3 or peer == "appenders"}
    assert found == expected
