# SPDX-License-Identifier: Apache-2.0
"""Pools that came along with a copied disk."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from hvring.cli.findings import Level, stale_pools
from hvring.events import Event
from hvring.guest.pool import Pool
from hvring.guest.pool_owner import RECORD, PoolOwner, StalePools, vm_id
from hvring.guest.pools import PoolStore
from hvring.services import Kvp


class Machine:
    """A virtual machine that gets copies of a disk."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.id = "A"

    @property
    def owner(self) -> PoolOwner:
        return PoolOwner(self.directory, lambda: self.id)

    def start(self, stale: str = "tell") -> list[Event]:
        """What the service tells when it starts there."""
        store = PoolStore(self.directory, owner=self.owner, stale=stale)  # type: ignore[arg-type]
        service = Kvp(store)
        told: list[Event] = []
        service.on_event = told.append
        service.tick()
        return told


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_the_first_start_is_on_record_and_the_next_ones_say_nothing(machine: Machine) -> None:
    assert machine.start() == machine.start() == []
    record = machine.directory / RECORD
    assert record.read_text().splitlines()[0] == "vm A"
    assert stat.S_IMODE(record.stat().st_mode) == 0o600
    assert machine.owner.stale() is None


def test_a_copy_is_told_of_at_each_start_and_by_the_doctor_and_nothing_is_lost(machine: Machine) -> None:
    pool = Pool(machine.directory / ".kvp_pool_1")
    machine.start()
    pool.set("k", "v")
    machine.id = "B"
    for _ in range(2):
        (event,) = machine.start()
        assert (event.kind.value, event.facts["was"], event.facts["now"]) == ("failed", "A", "B")
        assert event.facts["reason"] == "stale_pools"
        assert "hvring kvp clean" in str(event.facts["remedy"])
    (finding,) = stale_pools(machine.owner)
    assert finding.level is Level.TODO
    assert finding.text.startswith(
        "The pools were filled on another machine: A; this one is B; `hvring kvp clean"
    )
    assert pool.items() == [("k", "v")]
    machine.owner.record()
    assert machine.start() == list(stale_pools(machine.owner)) == []


def test_by_its_setting_a_copy_starts_with_empty_pools(machine: Machine) -> None:
    machine.start("clean")
    for number in range(5):
        Pool(machine.directory / f".kvp_pool_{number}").set("k", "v")
    assert machine.start("clean") == []
    machine.id = "B"
    (event,) = machine.start("clean")
    assert (event.kind.value, event.facts["emptied"]) == ("changed", True)
    assert [Pool(machine.directory / f".kvp_pool_{n}").items() for n in range(5)] == [[]] * 5
    assert machine.start("clean") == []
    assert machine.owner.stale() is None


def test_where_the_machine_is_not_known_nothing_is_said_or_recorded(machine: Machine) -> None:
    machine.id = ""
    assert machine.start() == []
    assert not (machine.directory / RECORD).exists()
    machine.id = "A"
    machine.start()
    machine.id = ""
    assert machine.start("clean") == []
    assert vm_id(os.fspath(machine.directory / "missing")) == ""


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"vm \n", b"x" * 5000, b"boot A\n"])
def test_a_record_that_is_none_is_written_anew(machine: Machine, content: bytes) -> None:
    (machine.directory / RECORD).write_bytes(content)
    assert machine.start() == []
    machine.id = "B"
    assert machine.owner.stale() == StalePools("A", "B")
