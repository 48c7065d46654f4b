# SPDX-License-Identifier: Apache-2.0
"""cloud-init writes its log into pool 1: its files are read by Pool, and ours by it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hvring.guest.pools import RECORD_SIZE, Pool

#: cloud-init and what its reporter imports.
PACKAGES = (
    "cloud-init",
    "python3-certifi",
    "python3-chardet",
    "python3-charset-normalizer",
    "python3-idna",
    "python3-requests",
    "python3-six",
    "python3-urllib3",
    "python3-yaml",
)
PEER = Path(__file__).with_name("cloud_init_peer.py")
Items = list[tuple[str, str]]


@pytest.fixture(scope="module")
def command(unpack: Any) -> list[str]:
    """The command line of the peer, up to the pool file."""
    python = shutil.which("python3", path="/usr/bin")
    if python is None:
        pytest.skip("Debian's packages need Debian's Python: no /usr/bin/python3")
    modules = unpack("cloud-init", *PACKAGES) / "usr/lib/python3/dist-packages"
    line = [python, "-I", str(PEER), str(modules)]
    probe = "import sys; sys.path.insert(0, sys.argv[1]); import cloudinit.reporting.handlers"
    done = subprocess.run(
        [python, "-I", "-c", probe, str(modules)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"cloud-init does not run here: {done.stderr.strip().splitlines()[-1]}")
    return line


@pytest.fixture
def cloud_init(command: list[str]) -> Callable[..., Items]:
    """cloud_init(pool, *events) publishes events and returns what cloud-init then reads."""

    def run(pool: Pool, *events: str) -> Items:
        output = subprocess.check_output([*command, pool.path, *events], text=True)
        return [(key, value) for key, value in json.loads(output)]

    return run


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    pool = Pool(tmp_path / ".kvp_pool_1", timeout=60)
    pool.create()
    return pool


def test_what_cloud_init_writes_is_what_we_read(cloud_init: Callable[..., Items], pool: Pool) -> None:
    theirs = cloud_init(pool, "init-local", "modules:конфиг", "\U0001f680")
    assert len(theirs) > 3  # long events are split
    assert pool.items() == theirs
    assert [pool.get(key) for key, _ in theirs] == [value for _, value in theirs]
    assert [pool.record(i) for i in range(len(theirs) + 1)] == [*theirs, None]
    # This is the splitting for Azure: no value is longer than half of what a record holds.
    assert max(len(value.encode()) for _, value in theirs) <= 1024


def test_what_we_write_is_what_cloud_init_reads(cloud_init: Callable[..., Items], pool: Pool) -> None:
    ours = [("key", "value"), ("größe", "\U0001f4be " * 100), ("empty", ""), ("k" * 511, "v" * 2047)]
    for key, value in ours:
        pool.set(key, value)
    assert cloud_init(pool) == ours
    pool.set("key", "v")  # shorter: no rest of the old value may show
    pool.delete("empty")
    assert cloud_init(pool) == [("key", "v"), *ours[1:2], *ours[3:]]


def test_the_file_is_the_same_whoever_writes_a_record(cloud_init: Callable[..., Items], pool: Pool) -> None:
    theirs = cloud_init(pool, "event")
    copy = Pool(pool.path + ".copy")
    for key, value in theirs:
        copy.set(key, value)
    assert Path(copy.path).read_bytes() == Path(pool.path).read_bytes()


def test_both_write_at_the_same_time_and_nothing_is_lost(command: list[str], pool: Pool) -> None:
    events = [f"event-{n}" for n in range(40)]
    peer = subprocess.Popen([*command, pool.path, *events], stdout=subprocess.PIPE)
    mine = 0
    while mine < 100 or (peer.poll() is None and mine < 1000):
        pool.set(f"mine-{mine}", "x" * 2000)
        pool.set(f"mine-{mine}", "y" * 10)
        if mine % 5 == 0:
            pool.delete(f"mine-{mine}")
        mine += 1
    peer.communicate(timeout=60)
    assert peer.returncode == 0
    found = dict(pool.items())
    assert {key for key in found if key.startswith("mine-")} == {f"mine-{n}" for n in range(mine) if n % 5}
    assert all(value == "y" * 10 for key, value in found.items() if key.startswith("mine-"))
    assert all(any(f"|{event}|" in key for key in found) for event in events)
    assert Path(pool.path).stat().st_size % RECORD_SIZE == 0


WRITER = """
import os, sys
from hvring.guest.pools import Pool
pool, name, n = Pool(sys.argv[1], timeout=60), sys.argv[2], 0
while n < 30 or not os.path.exists(sys.argv[3]):
    pool.set(f"{name}{n}", (name * 270)[:1900])
    pool.set(f"{name}{n}", (name * 270)[:1500])
    if n % 30:
        assert pool.delete(f"{name}{n}")
    n += 1
print(n)
"""


def test_eight_write_at_the_same_time_and_nothing_is_lost_torn_or_doubled(
    command: list[str], pool: Pool, tmp_path: Path
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    over = tmp_path / "over"
    events = [[f"event-{n}-{k}" for k in range(40)] for n in range(4)]
    ours = {
        name: subprocess.Popen(
            [sys.executable, "-c", WRITER, pool.path, name, str(over)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("ours-a-", "ours-b-", "ours-c-", "ours-d-")
    }
    peers = [subprocess.Popen([*command, pool.path, *some], stdout=subprocess.DEVNULL) for some in events]
    assert [peer.wait(120) for peer in peers] == [0] * 4
    over.touch()
    rounds = {name: int(one.communicate(timeout=120)[0]) for name, one in ours.items()}
    items = pool.items()
    found = dict(items)
    assert Path(pool.path).stat().st_size == len(items) * RECORD_SIZE
    assert len(found) == len(items)
    mine = {f"{name}{n}": (name * 270)[:1500] for name in ours for n in range(0, rounds[name], 30)}
    assert {key: value for key, value in found.items() if key.startswith("ours-")} == mine
    missing = [event for some in events for event in some if not any(f"|{event}|" in key for key in found)]
    assert missing == []
