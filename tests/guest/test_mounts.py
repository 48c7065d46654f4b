# SPDX-License-Identifier: Apache-2.0
"""The rules of the plan, on made-up mount tables and sysfs trees."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hvring.errors import EffectError
from hvring.guest.mounts import Plan, is_on_loop, parse_mountinfo, read_plan

PlanOf = Callable[..., Plan]


def line(
    number: int,
    device: str,
    target: str,
    source: str,
    fstype: str = "ext4",
    options: str = "rw",
    tags: str = "",
) -> str:
    return f"{number} 1 {device} / {target} rw,relatime {tags}- {fstype} {source} {options}\n"


@pytest.fixture
def plan_of(tmp_path: Path) -> PlanOf:
    def read(*lines: str, **settings: object) -> Plan:
        mountinfo = tmp_path / "mountinfo"
        mountinfo.write_text("".join(lines), encoding="utf-8")
        return read_plan(mountinfo=str(mountinfo), sysfs=str(tmp_path / "sys"), **settings)  # type: ignore[arg-type]

    return read


def add_disk(sysfs: Path, number: str, name: str, *, loop: bool = False, below: tuple[str, ...] = ()) -> None:
    """A disk as sysfs shows it: a link from dev/block, and links to what it is stacked on."""
    disk = sysfs / "devices" / name
    (disk / "slaves").mkdir(parents=True)
    if loop:
        (disk / "loop").mkdir()
    for lower in below:
        (disk / "slaves" / Path(lower).name).symlink_to(sysfs / "devices" / lower)
    blocks = sysfs / "dev" / "block"
    blocks.mkdir(parents=True, exist_ok=True)
    (blocks / number).symlink_to(disk)


def add_partition(sysfs: Path, number: str, disk: str, name: str) -> None:
    part = sysfs / "devices" / disk / name
    part.mkdir()
    (part / "partition").write_text("1")
    (sysfs / "dev" / "block" / number).symlink_to(part)


def frozen(plan: Plan) -> list[str]:
    return [filesystem.target for filesystem in plan.freeze]


def skipped(plan: Plan) -> dict[str, str]:
    return {left.filesystem.target: left.why for left in plan.skipped}


def test_the_newest_mount_comes_first_and_the_root_last(plan_of: PlanOf) -> None:
    plan = plan_of(
        line(20, "8:1", "/", "/dev/sda1"),
        line(21, "8:2", "/var", "/dev/sda2"),
        line(22, "8:3", "/var/lib", "/dev/sda3"),
    )
    assert frozen(plan) == ["/var/lib", "/var", "/"]


def test_the_root_comes_last_even_if_it_was_mounted_later(plan_of: PlanOf) -> None:
    plan = plan_of(line(20, "8:2", "/data", "/dev/sda2"), line(21, "8:1", "/", "/dev/sda1"))
    assert frozen(plan) == ["/data", "/"]


def test_a_root_that_is_also_mounted_elsewhere_still_comes_last(plan_of: PlanOf) -> None:
    plan = plan_of(
        line(20, "8:1", "/srv/copy", "/dev/sda1"),
        line(21, "8:1", "/", "/dev/sda1"),
        line(22, "8:2", "/data", "/dev/sda2"),
    )
    assert frozen(plan) == ["/data", "/srv/copy"]


def test_what_cannot_or_need_not_be_frozen_is_skipped_with_its_reason(plan_of: PlanOf) -> None:
    plan = plan_of(
        line(20, "8:1", "/", "/dev/sda1"),
        line(21, "0:5", "/proc", "proc", "proc"),
        line(22, "0:6", "/pool", "pool/data", "zfs"),
        line(23, "8:15", "/boot/efi", "/dev/sda15", "vfat"),
        line(24, "11:0", "/media", "/dev/sr0", "iso9660", "ro,nojoliet"),
    )
    assert frozen(plan) == ["/"]
    assert skipped(plan) == {
        "/proc": "not on a block device",
        "/pool": "not on a block device",
        "/boot/efi": "vfat cannot be frozen",
        "/media": "read-only",
    }


def test_a_read_only_mount_of_a_writable_file_system_is_frozen(plan_of: PlanOf) -> None:
    # Services in a sandbox see almost everything that way.
    plan = plan_of("20 1 8:1 / / ro,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro\n")
    assert frozen(plan) == ["/"]


def test_each_file_system_is_frozen_once_whatever_it_is_mounted_on(plan_of: PlanOf) -> None:
    plan = plan_of(
        line(20, "0:30", "/", "/dev/sda1", "btrfs", "rw,subvol=/@"),
        line(21, "0:30", "/home", "/dev/sda1", "btrfs", "rw,subvol=/@home"),
        line(22, "8:2", "/data", "/dev/sda2", "xfs"),
        line(23, "8:2", "/srv", "/dev/sda2", "xfs"),
    )
    assert [filesystem.targets for filesystem in plan.freeze] == [("/data", "/srv"), ("/", "/home")]


def test_only_and_exclude_choose_by_any_mount_point(plan_of: PlanOf) -> None:
    table = (
        line(20, "8:1", "/", "/dev/sda1"),
        line(21, "8:2", "/data", "/dev/sda2"),
        line(22, "8:2", "/srv", "/dev/sda2"),
        line(23, "8:3", "/var/lib/docker", "/dev/sda3"),
    )
    assert frozen(plan_of(*table, only=["/srv"])) == ["/data"]
    excluding = plan_of(*table, exclude=["/srv", "/var/lib/*"])
    assert frozen(excluding) == ["/"]
    assert skipped(excluding) == {"/data": "excluded", "/var/lib/docker": "excluded"}


def test_loop_devices_are_skipped_unless_they_are_asked_for(plan_of: PlanOf, tmp_path: Path) -> None:
    add_disk(tmp_path / "sys", "7:0", "loop0", loop=True)
    add_disk(tmp_path / "sys", "8:0", "sda")
    table = (line(20, "8:0", "/", "/dev/sda"), line(21, "7:0", "/image", "/dev/loop0"))
    plan = plan_of(*table)
    assert (frozen(plan), skipped(plan)) == (["/"], {"/image": "on a loop device"})
    assert frozen(plan_of(*table, loops=["/image"])) == ["/image", "/"]


def test_devices_stacked_on_a_loop_device_count_as_loop_devices(tmp_path: Path) -> None:
    add_disk(tmp_path, "7:0", "loop0", loop=True)
    add_disk(tmp_path, "8:0", "sda")
    add_disk(tmp_path, "9:0", "md0", below=("sda", "loop0"))
    add_disk(tmp_path, "253:0", "dm-0", below=("md0",))
    add_disk(tmp_path, "253:1", "dm-1", below=("sda",))
    add_partition(tmp_path, "259:0", "loop0", "loop0p1")
    add_partition(tmp_path, "259:1", "sda", "sda1")
    add_disk(tmp_path, "253:2", "dm-2", below=("loop0/loop0p1",))
    found = {
        n: is_on_loop(n, str(tmp_path))
        for n in ("7:0", "8:0", "9:0", "253:0", "253:1", "259:0", "259:1", "253:2")
    }
    assert found == {
        "7:0": True,
        "8:0": False,
        "9:0": True,
        "253:0": True,
        "253:1": False,
        "259:0": True,
        "259:1": False,
        "253:2": True,
    }
    assert not is_on_loop("8:99", str(tmp_path))


def test_a_circle_of_devices_ends(tmp_path: Path) -> None:
    add_disk(tmp_path, "253:0", "dm-0", below=("dm-1",))
    add_disk(tmp_path, "253:1", "dm-1", below=("dm-0",))
    assert not is_on_loop("253:0", str(tmp_path))


def test_escapes_tags_and_odd_lines_are_understood() -> None:
    mounts = list(
        parse_mountinfo(
            [
                line(20, "8:1", "/a\\040b\\134c", "/dev/mapper/x\\011y", tags="shared:1 master:2 "),
                "nonsense\n",
                "21 1 8:2 / /c rw - ext4\n",
                "22 1 8:3 / /d rw - ext4 /dev/sdc rw",
            ]
        )
    )
    assert [(m.id, m.target, m.source) for m in mounts] == [
        (20, "/a b\\c", "/dev/mapper/x\ty"),
        (22, "/d", "/dev/sdc"),
    ]


def test_the_table_of_this_machine_can_be_read() -> None:
    plan = read_plan()
    targets = [target for fs in plan.freeze for target in fs.targets]
    targets += [target for left in plan.skipped for target in left.filesystem.targets]
    with open("/proc/self/mountinfo", encoding="utf-8") as lines:
        assert len(targets) == len(lines.readlines())


def test_a_missing_table_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EffectError, match="nowhere"):
        read_plan(mountinfo=str(tmp_path / "nowhere"))
