# SPDX-License-Identifier: Apache-2.0
"""Which file systems lie on the disks that a host names: on made-up trees of /sys, laid out as Hyper-V's."""

from __future__ import annotations

from pathlib import Path

import pytest

from hvring.guest.disks import ON_NO_NAMED_DISK, Address, attached, disks_below, guid_text, narrowed
from hvring.guest.freezer import RehearsedFreezer
from hvring.guest.mounts import Filesystem, Mount, Plan
from hvring.ic.vss import BusType, Lun

ONE, TWO = "1f5e9b7c-0a31-4d5e-8c2b-6d0f3a9e4b11", "a0b1c2d3-e4f5-4678-9abc-def012345678"
IDE = "00000000-0001-8899-0000-000000000000"
SCSI_CLASS, IDE_CLASS = "{ba6163d9-04a1-4d29-b605-72e2ffb1dc7f}", "{32412632-86cb-44a2-9b5c-50d1417354f5}"


def raw(guid: str) -> bytes:
    import uuid

    return uuid.UUID(guid).bytes_le


class Sysfs:
    """Disks, and what is stacked on them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("block", "dev/block"):
            (root / folder).mkdir(parents=True)

    def controller(self, guid: str, class_id: str = SCSI_CLASS) -> Path:
        place = self.root / "devices/LNXSYSTM:00/VMBUS:01" / guid
        if not place.exists():
            place.mkdir(parents=True)
            (place / "class_id").write_text(f"{class_id}\n")
        return place

    def disk(
        self, name: str, number: str, guid: str, target: int, lun: int, class_id: str = SCSI_CLASS
    ) -> Path:
        scsi = self.controller(guid, class_id) / f"host0/target0:0:{target}/0:0:{target}:{lun}"
        place = scsi / "block" / name
        place.mkdir(parents=True)
        (place / "device").symlink_to("../..")
        return self._known(place, name, number)

    def part(self, disk: Path, name: str, number: str) -> Path:
        place = disk / name
        place.mkdir()
        (place / "partition").write_text("1\n")
        (self.root / "dev/block" / number).symlink_to(place)
        return place

    def virtual(self, name: str, number: str, *below: Path, image: str = "") -> Path:
        place = self.root / "devices/virtual/block" / name
        (place / "slaves").mkdir(parents=True)
        for lower in below:
            (place / "slaves" / lower.name).symlink_to(lower)
        if image:
            (place / "loop").mkdir()
            (place / "loop/backing_file").write_text(f"{image}\n")
        return self._known(place, name, number)

    def _known(self, place: Path, name: str, number: str) -> Path:
        (place / "dev").write_text(f"{number}\n")
        (self.root / "block" / name).symlink_to(place)
        (self.root / "dev/block" / number).symlink_to(place)
        return place


def fs(target: str, device: str, fstype: str = "ext4", source: str = "/dev/x", *options: str) -> Filesystem:
    return Filesystem(
        (Mount(abs(hash(target)) % 999, device, target, fstype, source, False, options=options),)
    )


@pytest.fixture
def sysfs(tmp_path: Path) -> Sysfs:
    return Sysfs(tmp_path)


@pytest.fixture
def machine(sysfs: Sysfs) -> Plan:
    """The root on a part of sda, /data on LVM over sdb1 and sdc, /raid on md over sdd, an image on /data."""
    sda, sdb = sysfs.disk("sda", "8:0", ONE, 0, 0), sysfs.disk("sdb", "8:16", ONE, 0, 1)
    sdc, sdd = sysfs.disk("sdc", "8:32", TWO, 0, 1), sysfs.disk("sdd", "8:48", TWO, 0, 13)
    sysfs.part(sda, "sda1", "8:1")
    sysfs.virtual("dm-0", "253:0", sysfs.part(sdb, "sdb1", "8:17"), sdc)
    sysfs.virtual("dm-1", "253:1", sysfs.virtual("md0", "9:0", sdd))
    sysfs.virtual("loop0", "7:0", image="/data/images/a")
    return Plan((fs("/image", "7:0"), fs("/raid", "253:1"), fs("/data", "253:0"), fs("/", "8:1")), ())


def chosen(plan: Plan, sysfs: Sysfs, *named: Lun) -> list[str]:
    found = narrowed(plan, named, str(sysfs.root))
    targets = [each.target for each in found.freeze]
    left = [one.filesystem.target for one in found.skipped if one.why == ON_NO_NAMED_DISK]
    assert sorted(targets + left) == sorted(each.target for each in plan.freeze)
    assert len(found.notes) == 1
    return targets


def scsi(guid: str, lun: int, target: int = 0, port: int = 0) -> Lun:
    return Lun(BusType.SCSI, raw(guid), port, target, lun)


def test_the_disks_of_a_host_are_found_by_their_controllers(machine: Plan, sysfs: Sysfs) -> None:
    found = {Path(place).name: address for place, address in attached(str(sysfs.root)).items()}
    assert found == {
        "sda": Address(ONE, 0, 0, False),
        "sdb": Address(ONE, 0, 1, False),
        "sdc": Address(TWO, 0, 1, False),
        "sdd": Address(TWO, 0, 13, False),
    }


@pytest.mark.parametrize(
    ("named", "frozen"),
    [
        ([scsi(ONE, 0)], ["/"]),
        ([scsi(ONE, 1)], ["/image", "/data"]),  # one half of the volume is enough, and the image lies on it
        ([scsi(TWO, 1)], ["/image", "/data"]),
        ([scsi(TWO, 13)], ["/raid"]),
        ([scsi(ONE, 0), scsi(TWO, 13)], ["/raid", "/"]),
        ([scsi(ONE, 0, port=1)], ["/"]),
        ([scsi(ONE, n) for n in (0, 1)] + [scsi(TWO, n) for n in (1, 13)], ["/image", "/raid", "/data", "/"]),
    ],
)
def test_what_lies_on_the_named_disks_is_frozen_in_the_same_order(
    machine: Plan, sysfs: Sysfs, named: list[Lun], frozen: list[str]
) -> None:
    assert chosen(machine, sysfs, *named) == frozen


@pytest.mark.parametrize(
    ("named", "note"),
    [
        ([], "all are frozen: the host names no disk"),
        ([scsi(ONE, 7)], f"all are frozen: the host names SCSI {ONE} target 0 LUN 7, which is no disk here"),
        (
            [scsi(ONE, 0), scsi(ONE, 0, target=1)],
            f"the host names SCSI {ONE} target 1 LUN 0, which is no disk here",
        ),
        ([scsi(IDE, 0)], f"all are frozen: the host names SCSI {IDE} target 0 LUN 0, which is no disk here"),
        ([Lun(BusType.IDE)], "all are frozen: the host names IDE 00000000-"),
        ([Lun(BusType.INVALID, raw(ONE))], f"all are frozen: the host names bus 0 {ONE}"),
        ([Lun(77, raw(ONE))], "all are frozen: the host names bus 77"),
        # the same bytes in the order in which they are written is another GUID
        ([Lun(BusType.SCSI, bytes.fromhex(ONE.replace("-", "")))], "which is no disk here"),
    ],
)
def test_all_is_frozen_where_it_cannot_be_told(
    machine: Plan, sysfs: Sysfs, named: list[Lun], note: str
) -> None:
    found = narrowed(machine, named, str(sysfs.root))
    assert found.freeze == machine.freeze
    assert note in found.notes[0]


def test_an_ide_disk_stands_for_all_of_them(sysfs: Sysfs) -> None:
    for number, (name, guid) in enumerate((("sda", IDE), ("sdb", IDE.replace("-0001-", "-0000-")))):
        sysfs.disk(name, f"8:{16 * number}", guid, number, 0, IDE_CLASS)
    sysfs.disk("sdc", "8:32", ONE, 0, 0)
    plan = Plan((fs("/c", "8:32"), fs("/b", "8:16"), fs("/", "8:0")), ())
    assert chosen(plan, sysfs, Lun(BusType.IDE, raw(ONE), 1, 0, 0)) == ["/b", "/"]
    assert chosen(plan, sysfs, scsi(ONE, 0)) == ["/c"]


@pytest.mark.parametrize(
    "odd",
    [
        fs("/odd", "43:0"),  # a disk of a network
        fs("/odd", "8:99"),  # one that is gone from /sys
        fs("/odd", "0:50", "btrfs", "nothing"),
        fs("/odd", "0:51", "bcachefs", "/dev/sdx:elsewhere"),
        fs("/odd", "8:16", "xfs", "/dev/sdb", "rw", "logdev=/dev/sdq"),
        fs("/odd", "7:1"),  # an image on what is not frozen
        fs("/odd", "7:2"),  # one of which nobody knows where it is
        fs("/odd", "7:3"),  # one on itself
    ],
)
def test_what_may_be_on_a_named_disk_is_frozen_and_said(sysfs: Sysfs, odd: Filesystem) -> None:
    sysfs.disk("sda", "8:0", ONE, 0, 0)
    sysfs.disk("sdb", "8:16", ONE, 0, 1)
    sysfs.virtual("nbd0", "43:0")
    sysfs.virtual("loop1", "7:1", image="relative/to/something")
    sysfs.virtual("loop2", "7:2", image="x")
    (sysfs.root / "devices/virtual/block/loop2/loop/backing_file").unlink()
    sysfs.virtual("loop3", "7:3", image="/odd/image")
    plan = Plan((odd, fs("/other", "8:16"), fs("/", "8:0")), ())
    assert None in disks_below(odd, plan, str(sysfs.root))
    found = narrowed(plan, [scsi(ONE, 0)], str(sysfs.root))
    assert [each.target for each in found.freeze] == ["/odd", "/"]
    assert "of which it cannot be told: /odd" in found.notes[0]


def test_a_file_system_of_two_disks_is_on_both(sysfs: Sysfs, monkeypatch: pytest.MonkeyPatch) -> None:
    for n, name in enumerate(("sda", "sdb", "sdc")):
        sysfs.disk(name, f"8:{n}", ONE, 0, n)
    members = {"0:40": ("8:0", "8:1"), "8:2": ("8:2",)}
    monkeypatch.setattr("hvring.guest.disks.block_devices", lambda device, *_: members[device])
    plan = Plan((fs("/pool", "0:40", "btrfs", "/dev/sda"), fs("/c", "8:2")), ())
    assert chosen(plan, sysfs, scsi(ONE, 1)) == ["/pool"]
    assert chosen(plan, sysfs, scsi(ONE, 2)) == ["/c"]


def test_a_guid_is_written_as_the_kernel_does() -> None:
    assert guid_text(bytes(range(16))) == "03020100-0504-0706-0809-0a0b0c0d0e0f"
    assert guid_text(raw(ONE)) == ONE


def test_a_rehearsal_says_what_would_have_been_chosen() -> None:
    plan = Plan((fs("/data", "8:16"),), ())
    freezer = RehearsedFreezer(lambda: plan)
    freezer.freeze(())
    assert freezer.summary == "/data; all are frozen: the host names no disk"
    assert freezer.events == ["freeze /data"]
