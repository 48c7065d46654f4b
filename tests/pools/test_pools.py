# SPDX-License-Identifier: Apache-2.0
"""The library for programs of this machine: what it takes, refuses and weighs."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

import hvring
from hvring.guest.records import RECORD_SIZE
from hvring.pools import (
    FILE,
    Convention,
    EffectError,
    PoolBusyError,
    PoolLimitError,
    Pools,
)

ROOT = Path(__file__).parents[2]


def record(key: bytes, value: bytes) -> bytes:
    return key.ljust(512, b"\0") + value.ljust(2048, b"\0")


@pytest.fixture
def pools(tmp_path: Path) -> Pools:
    return Pools(tmp_path / "hyperv")


def test_pools_have_names_numbers_and_no_files_before_they_are_used(pools: Pools) -> None:
    assert pools["guest"] is pools[1] is pools.guest
    assert pools["external"] is pools[0] is pools.external
    assert pools["auto-external"] is pools[3] is pools.auto_external
    assert pools.guest.items() == []
    assert not Path(pools.directory).exists()
    pools.guest.set("key", "value")
    assert (pools.guest.get("key"), "key" in pools.guest, len(pools.guest)) == ("value", True, 1)
    assert (Path(pools.directory) / ".kvp_pool_1").stat().st_size == RECORD_SIZE
    assert pools.guest.delete("key")
    assert not pools.guest.delete("key")
    for which in (5, -1, "other"):
        with pytest.raises(EffectError, match="there is no pool"):
            pools[which]


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("k" * 255, "v", "the key has 255 bytes, 254"),
        ("é" * 128, "v", "the key has 256 bytes, 254"),
        ("k", "v" * 1023, "the value has 1023 bytes, 1022 are sure to reach a host; it can be split"),
        ("k", "\udc80", "not proper Unicode"),
        ("", "v", "empty"),
        ("k\0", "v", "NUL"),
    ],
)
def test_what_may_not_reach_a_host_whole_is_refused_unless_one_asks_for_it(
    pools: Pools, key: str, value: str, says: str
) -> None:
    with pytest.raises(PoolLimitError, match=says):
        pools.guest.set(key, value)
    assert pools.guest.items() == []
    pools.guest.set("k" * 254, "v" * 1022)
    if len(key) > 100 or len(value) > 100:
        Pools(pools.directory, limits=FILE).guest.set(key, value)
        assert pools.guest.get(key) == value


@pytest.mark.parametrize("convention", [Convention.IGNITION, Convention.AZURE_INIT])
def test_a_long_value_is_split_joined_replaced_and_deleted_as_one(
    pools: Pools, convention: Convention
) -> None:
    guest = pools.guest
    guest.set("before", "1")
    for value in ("é" * 2000, "x" * 5000, "short", ""):
        guest.set("config", value, split=convention)
        assert guest.get("config", join=convention) == value
        assert all(len(part.encode()) <= 1022 for _, part in guest.items())
        assert len(guest) == 1 + max(1, -(-len(value.encode()) // 1022))
    assert guest.delete("config", joined=convention)
    assert not guest.delete("config", joined=convention)
    assert guest.items() == [("before", "1")]


def test_an_exchange_is_one_change_and_nothing_is_written_where_nothing_changes(pools: Pools) -> None:
    guest = pools.guest
    path = Path(guest.path)
    raw = [("a", "1"), ("caf\udce9", "\udcff"), ("k" * 512, "v" * 2048), ("a", "2")]
    assert guest.exchange(None, raw)
    assert guest.items() == raw
    before = path.stat()
    assert not guest.exchange(None, raw)
    assert not guest.exchange({"a"}, [("a", "1"), ("a", "2")])
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert guest.exchange({"a", "missing"}, [("b", "3")])
    assert guest.items() == [*raw[1:3], ("b", "3")]
    assert guest.exchange(None, [])
    assert path.stat().st_size == 0
    for bad in (("k" * 513, ""), ("k", "v" * 2049), ("", ""), ("k", "\0"), ("\ud800", "")):
        with pytest.raises(PoolLimitError):
            guest.exchange((), [("good", ""), bad])
    assert guest.items() == []


def test_an_exchange_beside_others_who_have_the_file_open_leaves_them_the_file(pools: Pools) -> None:
    guest = pools.guest
    guest.exchange(None, [(f"k{n}", "x" * 2000) for n in range(9)])
    with open(guest.path, "rb") as other:
        assert guest.exchange({"k1", "k3", "k8"}, [("k3", "new"), ("k9", "y" * 2000)])
        data = other.read()
    assert data == Path(guest.path).read_bytes()
    assert dict(guest.items()) == {
        **{f"k{n}": "x" * 2000 for n in (0, 2, 4, 5, 6, 7)},
        "k3": "new",
        "k9": "y" * 2000,
    }


def test_a_pool_that_somebody_keeps_is_an_error_of_its_own_kind(pools: Pools) -> None:
    pools.guest.set("k", "v")
    with open(pools.guest.path, "rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        impatient = Pools(pools.directory, timeout=0.01).guest
        with pytest.raises(PoolBusyError, match="locked by another program"):
            impatient.set("k", "w")
        with pytest.raises(PoolBusyError):
            impatient.exchange(None, [])
        assert impatient.items() == [("k", "v")]


def test_the_library_comes_without_the_extensions_the_services_and_an_event_loop() -> None:
    code = (
        "import sys; import hvring.pools\n"
        "print(*sorted(m for m in sys.modules if m.startswith('hvring')))\n"
        "print(*sorted({'asyncio', 'ctypes', 'json', 'numpy', 'socket', 'ssl', 'subprocess'} & sys.modules.keys()))"
    )
    # without what this environment's packages bring along, wherever hvring is installed
    where = {**os.environ, "PYTHONPATH": str(Path(hvring.__file__).parents[1])}
    command = [sys.executable, "-S", "-c", code]
    lines = subprocess.check_output(command, text=True, cwd=ROOT, env=where).splitlines()
    floors = {name.split(".")[1] for name in lines[0].split() if "." in name}
    assert floors == {"errors", "guest", "pending", "pools", "reasons", "status"}
    assert lines[1:] == [""]


def test_the_names_of_the_package_are_there_when_they_are_used() -> None:
    code = "import hvring; print(*(getattr(hvring, name).__name__ for name in hvring.__all__ if name in dir(hvring)))"
    names = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT).split()
    assert {"Agent", "Channel", "Packet", "RingProducer", "serve"} <= set(names)
    code = (
        "import hvring; print(hvring.ring.get_include(), hvring.channel.Channel, hasattr(hvring, 'nothing'))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT).split()[-1] == "False"
