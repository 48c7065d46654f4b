# SPDX-License-Identifier: Apache-2.0
"""The rules of the plan, on made-up mount tables and sysfs trees."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hvring.errors import EffectError
from hvring.guest.mounts import Plan, is_on_loop, parse_mountinfo, read_plan
from hvring.guest.stack import _others_of_btrfs

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
        mountinfo.write_text("".join(lines), encoding="utf-8", newline="\n")
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


def test_only_chooses_by_any_mount_point_and_exclude_by_the_first_or_by_all(plan_of: PlanOf) -> None:
    table = (
        line(20, "8:1", "/", "/dev/sda1"),
        line(21, "8:2", "/data", "/dev/sda2"),
        line(22, "8:2", "/srv", "/dev/sda2"),
        line(23, "8:3", "/var/lib/docker", "/dev/sda3"),
    )
    assert frozen(plan_of(*table, only=["/srv"])) == ["/data"]
    excluding = plan_of(*table, exclude=["/data", "/var/lib/*"])
    assert frozen(excluding) == ["/"]
    assert skipped(excluding) == {"/data": "excluded", "/var/lib/docker": "excluded"}
    assert excluding.notes == ()
    by_the_second = plan_of(*table, exclude=["/srv"])
    assert frozen(by_the_second) == ["/var/lib/docker", "/data", "/"]
    assert by_the_second.notes == (
        "/data (/dev/sda2, ext4) is frozen although /srv is excluded: it is the same file system",
    )


def test_a_bind_mount_that_is_excluded_does_not_exclude_the_root(plan_of: PlanOf) -> None:
    plan = plan_of(
        line(22, "8:1", "/", "/dev/sda1"),
        line(90, "8:1", "/var/lib/kubelet/pods/1/v", "/dev/sda1"),
        line(91, "8:17", "/var/lib/kubelet/pods/2/v", "/dev/sdb1"),
        exclude=["/var/lib/kubelet/*"],
    )
    assert frozen(plan) == ["/"]
    assert skipped(plan) == {"/var/lib/kubelet/pods/2/v": "excluded"}


@pytest.mark.parametrize(
    ("device", "fstype", "options", "why"),
    [
        ("0:51", "fuse", "rw,user_id=0", "FUSE cannot be frozen"),  # whatever its owner calls its source
        ("0:52", "fuse.sshfs", "rw", "FUSE cannot be frozen"),
        ("8:17", "fuseblk", "rw,user_id=0", "FUSE cannot be frozen"),
        ("8:17", "exfat", "rw", "exfat cannot be frozen"),
        ("8:17", "msdos", "rw", "msdos cannot be frozen"),
        ("0:53", "nfs4", "rw", "not on a block device"),
        ("0:54", "tmpfs", "rw", "not on a block device"),
        ("8:17", "ext4", "ro,errors=remount-ro", "read-only"),
        ("8:17", "ext4", "rw,emergency_ro,errors=remount-ro", "read-only"),
        ("8:17", "ext4", "rw,shutdown", "shut down by an error"),
    ],
)
def test_whoever_mounted_it_has_no_say_in_what_is_asked_to_freeze(
    plan_of: PlanOf, device: str, fstype: str, options: str, why: str
) -> None:
    plan = plan_of(
        line(22, "8:1", "/", "/dev/sda1"), line(60, device, "/home/u/x", "/dev/sdb1", fstype, options)
    )
    assert frozen(plan) == ["/"]
    assert skipped(plan) == {"/home/u/x": why}


def test_a_disk_is_one_by_its_number_whatever_its_source_is_called(plan_of: PlanOf) -> None:
    plan = plan_of(
        line(22, "8:1", "/", "rootfs-label"),
        line(23, "0:40", "/pool", "/dev/sdc", "btrfs"),
        line(24, "0:41", "/b", "/dev/sdd:/dev/sde", "bcachefs"),
        line(25, "0:42", "/odd", "nothing", "btrfs"),
    )
    assert frozen(plan) == ["/odd", "/b", "/pool", "/"]


def test_no_path_is_looked_at_that_somebody_may_have_put_in_front_of_us(
    plan_of: PlanOf, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    looked_at = []
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **more: looked_at.append(path) or stat(path, **more))
    plan_of(
        line(22, "8:1", "/", "/dev/sda1"),
        line(23, "0:40", "/a", "/dev/../home/u/hangs", "btrfs"),
        line(24, "0:41", "/b", "/home/u/hangs", "fuse"),
        line(25, "0:42", "/c", "/home/u/hangs", "btrfs"),
        line(26, "0:43", "/d", "/dev/null", "btrfs"),
    )
    assert {path for path in looked_at if not str(path).startswith(("/sys", str(tmp_path)))} == {"/dev/null"}


def test_an_image_comes_before_what_holds_it_however_the_table_is_ordered(
    plan_of: PlanOf, tmp_path: Path
) -> None:
    sysfs = tmp_path / "sys"
    add_disk(sysfs, "8:0", "sda")
    add_disk(sysfs, "8:16", "sdb")
    add_disk(sysfs, "7:0", "loop0", loop=True)
    add_disk(sysfs, "253:0", "dm-0", below=("loop0",))
    (sysfs / "devices" / "loop0" / "loop" / "backing_file").write_text("/a/deep/image (deleted)\n")
    holder, other = line(31, "8:0", "/a", "/dev/sda"), line(30, "8:16", "/z", "/dev/sdb")
    image = line(32, "253:0", "/z/sub", "/dev/mapper/x")
    for table in (
        (other, holder, image),
        (other, image, holder),
        (holder, other, image),
        (image, holder, other),
    ):
        order = frozen(plan_of(*table, loops=["/z/sub"]))
        assert order.index("/z/sub") < order.index("/a"), order


def test_images_that_hold_each_other_end(plan_of: PlanOf, tmp_path: Path) -> None:
    sysfs = tmp_path / "sys"
    for number in (0, 1):
        add_disk(sysfs, f"7:{number}", f"loop{number}", loop=True)
        (sysfs / "devices" / f"loop{number}" / "loop" / "backing_file").write_text(f"/{1 - number}/image\n")
    plan = plan_of(
        line(30, "7:0", "/0", "/dev/loop0"), line(31, "7:1", "/1", "/dev/loop1"), loops=["/0", "/1"]
    )
    assert sorted(frozen(plan)) == ["/0", "/1"]


def test_a_btrfs_on_several_devices_lies_on_all_of_them(tmp_path: Path) -> None:
    for number in (0, 1):
        add_disk(tmp_path, f"7:{number}", f"loop{number}", loop=True)
        (tmp_path / "devices" / f"loop{number}" / "dev").write_text(f"7:{number}\n")
    listed = tmp_path / "fs" / "btrfs" / "uuid" / "devices"
    listed.mkdir(parents=True)
    for number in (0, 1):
        (listed / f"loop{number}").symlink_to(tmp_path / "devices" / f"loop{number}")
    assert _others_of_btrfs("7:0", str(tmp_path)) == ["7:1"]
    assert _others_of_btrfs("8:0", str(tmp_path)) == []


@pytest.fixture
def add_process(tmp_path: Path) -> Callable[..., None]:
    """add_process(pid, namespace, *lines): as /proc shows it."""

    def add(pid: int | str, namespace: int, *lines: str) -> None:
        process = tmp_path / "proc" / str(pid)
        (process / "ns").mkdir(parents=True)
        (process / "ns" / "mnt").symlink_to(f"mnt:[{namespace}]")
        (process / "mountinfo").write_text("".join(lines), encoding="utf-8", newline="\n")

    return add


def test_a_disk_that_is_mounted_in_another_namespace_only_is_found(
    plan_of: PlanOf, tmp_path: Path, add_process: Callable[..., None]
) -> None:
    root = line(22, "8:1", "/", "/dev/sda1")
    add_process("self", 1, root)
    add_process(1, 1, root)
    add_process(7, 2, line(40, "8:1", "/", "/dev/sda1"), line(41, "8:17", "/pgsql", "/dev/sdb1"))
    add_process(8, 2, line(41, "8:17", "/never-read", "/dev/sdb1"))
    add_process(9, 3, line(50, "8:17", "/pgsql", "/dev/sdb1"), line(51, "0:9", "/tmp", "tmpfs", "tmpfs"))
    plan = plan_of(root, proc=str(tmp_path / "proc"))
    assert frozen(plan) == ["/pgsql", "/"]
    assert [mount.path for mount in plan.freeze[0].mounts] == ["/proc/7/root/pgsql", "/proc/9/root/pgsql"]
    assert str(plan.freeze[0]) == "/pgsql (/dev/sdb1, ext4, in the namespace of process 7)"
    assert plan.freeze[0].is_elsewhere
    assert skipped(plan_of(root, proc=str(tmp_path / "proc"), exclude=["/pgsql"])) == {"/pgsql": "excluded"}


def test_a_disk_behind_an_ordinary_users_fuse_is_named_and_not_looked_for(
    plan_of: PlanOf, tmp_path: Path, add_process: Callable[..., None]
) -> None:
    root = line(22, "8:1", "/", "/dev/sda1")
    add_process("self", 1, root)
    fuse = line(41, "0:77", "/home/u", "x", "fuse")
    add_process(
        7,
        2,
        line(40, "0:76", "/", "x", "tmpfs"),
        fuse,
        line(42, "8:17", "/home/u/d", "/dev/sdb1").replace("42 1", "42 41"),
    )
    plan = plan_of(root, proc=str(tmp_path / "proc"))
    assert frozen(plan) == ["/"]
    assert plan.notes == (
        "/proc/7/root/home/u/d is behind a file system that may hang, and is not looked at",
    )


def test_a_hidden_mount_is_looked_for_in_other_namespaces(
    plan_of: PlanOf, tmp_path: Path, add_process: Callable[..., None]
) -> None:
    own = (
        line(22, "8:1", "/", "/dev/sda1"),
        line(23, "8:17", "/data/db", "/dev/sdb1").replace("23 1", "23 22"),
        line(24, "8:33", "/data", "/dev/sdc1").replace("24 1", "24 22"),
    )
    add_process("self", 1, *own)
    add_process(7, 2, line(40, "8:17", "/db", "/dev/sdb1"))
    plan = plan_of(*own, proc=str(tmp_path / "proc"))
    hidden = next(filesystem for filesystem in plan.freeze if filesystem.target == "/data/db")
    assert [mount.path for mount in hidden.mounts] == ["/data/db", "/proc/7/root/db"]
    assert not hidden.is_elsewhere


def test_what_other_namespaces_cost_is_bounded_and_said(
    plan_of: PlanOf, tmp_path: Path, add_process: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hvring.guest.mountinfo.MAX_LINES", 10)
    monkeypatch.setattr("hvring.guest.mountinfo.MAX_PROCESSES", 2)
    root = line(22, "8:1", "/", "/dev/sda1")
    add_process("self", 1, root)
    for pid in (7, 8, 9):
        add_process(pid, pid, *(line(pid * 100 + i, f"0:{i}", f"/{i}", "x", "tmpfs") for i in range(11)))
    plan = plan_of(root, proc=str(tmp_path / "proc"))
    assert plan.notes == (
        "the mounts of 1 of 3 processes were not looked at",
        "other mount namespaces hold too many mounts to look at all of them",
    )


def test_a_mount_point_with_any_character_in_its_name_is_seen(plan_of: PlanOf) -> None:
    names = ["/a\rb", "/c\x0bd\x0ce", "/f\x85g\u2028h", "/i\x1cj"]
    plan = plan_of(*(line(20 + n, f"8:{n}", name, f"/dev/sd{n}") for n, name in enumerate(names)))
    assert sorted(frozen(plan)) == sorted(names)
    assert plan.notes == ()


def test_a_line_that_is_not_understood_is_said(plan_of: PlanOf) -> None:
    plan = plan_of(
        line(20, "8:1", "/", "/dev/sda1"), "21 1 8:2 / /data\n", "22 1 x / /d rw - ext4 /dev/sdb rw\n"
    )
    assert frozen(plan) == ["/"]
    assert [note.partition("not understood: ")[2] for note in plan.notes] == [
        "'21 1 8:2 / /data'",
        "'22 1 x / /d rw - ext4 /dev/sdb rw'",
    ]


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
    mounts = [mount for filesystem in plan.freeze for mount in filesystem.mounts]
    mounts += [mount for left in plan.skipped for mount in left.filesystem.mounts]
    with open("/proc/self/mountinfo", encoding="utf-8", newline="\n") as lines:
        assert len([mount for mount in mounts if not mount.process]) == len(lines.readlines())


def test_a_missing_table_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EffectError, match="nowhere"):
        read_plan(mountinfo=str(tmp_path / "nowhere"))
