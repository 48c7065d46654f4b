# SPDX-License-Identifier: Apache-2.0
"""What a plan knows to go wrong: told by tables as the kernel writes them, and by a real fanotify listener."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

import pytest

from hvring.guest.hazards import find_hazards
from hvring.guest.mounts import Filesystem, Mount, Plan, Skipped, read_plan


def mount(
    target: str, device: str, fstype: str = "ext4", source: str = "/dev/x", **more: object
) -> Filesystem:
    found = Mount(more.pop("id", 20), device, target, fstype, source, False, **more)  # type: ignore[arg-type]
    return Filesystem((found,))


ROOT = mount("/", "8:1", id=1)
VAR = mount("/var", "8:2", id=2)
PLAN = Plan((VAR, ROOT), ())


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "proc").mkdir()
    return tmp_path / "proc"


def kinds(plan: Plan, proc: Path, sysfs: Path | None = None, **more: object) -> list[tuple[str, str]]:
    quiet = {"journal": str(proc / "no journal"), **more}
    found = find_hazards(plan, proc=str(proc), sysfs=str(sysfs or proc / "sys"), **quiet)  # type: ignore[arg-type]
    assert all(hazard.what and hazard.remedy for hazard in found)
    return [(hazard.kind, hazard.target) for hazard in found]


def listener(proc: Path, pid: int, *marks: str, link: str = "anon_inode:[fanotify]") -> None:
    for folder in ("fd", "fdinfo"):
        (proc / str(pid) / folder).mkdir(parents=True)
    (proc / str(pid) / "comm").write_text("fapolicyd\n")
    (proc / str(pid) / "fd" / "7").symlink_to(link)
    text = "".join(f"{mark}\n" for mark in ("pos:\t0", "fanotify flags:10 event-flags:0", *marks))
    (proc / str(pid) / "fdinfo" / "7").write_text(text)


@pytest.mark.parametrize(
    ("marks", "expected"),
    [
        (["fanotify mnt_id:2 mflags:0 mask:10000 ignored_mask:0"], [("fanotify", "/var")]),
        (["fanotify sdev:800001 mflags:0 mask:20000 ignored_mask:0"], [("fanotify", "/")]),
        (
            ["fanotify ino:5 sdev:800002 mflags:0 mask:40000 ignored_mask:0 fhandle-bytes:8"],
            [("fanotify", "/var")],
        ),
        (
            ["fanotify mnt_id:1 mflags:0 mask:10000", "fanotify mnt_id:2 mflags:0 mask:10000"],
            [("fanotify", "")],
        ),
        (["fanotify mnt_id:99 mflags:0 mask:10000"], [("fanotify", "")]),  # of a mount that is not known here
        (["fanotify mnt_id:2 mflags:0 mask:3b ignored_mask:10000"], []),  # it is only told
        ([], []),
    ],
)
def test_who_is_asked_before_files_are_opened(
    proc: Path, marks: list[str], expected: list[tuple[str, str]]
) -> None:
    listener(proc, 7, *marks)
    assert kinds(PLAN, proc) == expected


def test_other_descriptors_and_processes_that_end_are_passed_over(proc: Path) -> None:
    listener(proc, 7, "fanotify mnt_id:2 mflags:0 mask:10000", link="anon_inode:inotify")
    (proc / "8").mkdir()
    (proc / "self").mkdir()
    assert kinds(PLAN, proc) == []


def test_a_real_listener_is_found(tmp_path: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.fanotify_init(0x4 | 0x1, os.O_RDONLY)  # FAN_CLASS_CONTENT | FAN_CLOEXEC
    if descriptor < 0:
        pytest.skip(f"no fanotify here: {errno.errorcode.get(ctypes.get_errno(), '?')}")
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        # On a directory that nobody opens: nothing of this machine waits for this test.
        if libc.fanotify_mark(descriptor, 0x1, ctypes.c_uint64(0x10000), folder, None) != 0:
            pytest.skip("this kernel asks nobody for permissions")
        found = [hazard for hazard in find_hazards(read_plan()) if hazard.kind == "fanotify"]
        assert any(f"(process {os.getpid()})" in hazard.what for hazard in found)
    finally:
        os.close(folder)
        os.close(descriptor)
    found = [hazard for hazard in find_hazards(read_plan()) if hazard.kind == "fanotify"]
    assert not any(f"(process {os.getpid()})" in hazard.what for hazard in found)


def test_images_on_what_is_frozen(proc: Path, tmp_path: Path) -> None:
    sysfs = tmp_path / "sys"
    for number in ("7:0", "7:1", "7:2"):
        (sysfs / "dev" / "block" / number / "loop").mkdir(parents=True)
    (sysfs / "dev/block/7:0/loop/backing_file").write_text("/var/image\n")
    (sysfs / "dev/block/7:1/loop/backing_file").write_text("/images/image\n")
    (sysfs / "dev/block/7:2/loop/backing_file").write_text("/tmp/on a tmpfs\n")
    one, two, three = mount("/one", "7:0"), mount("/two", "7:1"), mount("/three", "7:2")
    tmpfs = mount("/tmp", "0:30", "tmpfs")
    plan = Plan((two, VAR, ROOT), (Skipped(one, "on a loop device"), Skipped(three, ""), Skipped(tmpfs, "")))
    assert kinds(plan, proc, sysfs) == [("loop", "/one"), ("loop", "/two")]


def test_what_cannot_be_frozen_and_containers(proc: Path) -> None:
    upper = ("rw", "lowerdir=/a", "upperdir=/var/lib/containers/1/diff", "workdir=/b")
    plan = Plan(
        PLAN.freeze,
        (
            Skipped(mount("/fuse", "0:40", "fuse.sshfs"), ""),
            Skipped(mount("/sys/fs/fuse/connections", "0:41", "fusectl"), ""),
            Skipped(mount("/tank", "0:42", "zfs"), ""),
            Skipped(mount("/c1", "0:43", "overlay", options=upper), ""),
            Skipped(mount("/c2", "0:44", "overlay", options=("upperdir=/elsewhere/x",)), ""),
            Skipped(mount("/c3", "0:45", "overlay"), ""),
            Skipped(mount("/elsewhere", "0:46", "tmpfs"), ""),
        ),
    )
    assert kinds(plan, proc) == [("fuse", "/fuse"), ("zfs", "/tank"), ("overlay", "/c1")]


def test_swap_files_the_journal_and_the_agents_own(proc: Path, tmp_path: Path) -> None:
    (proc / "swaps").write_text(
        "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n/dev/sda3 partition 1 0 -2\n/var/swap\\040file file 1 0 -3\n"
    )
    own = [("the pools", "/var/lib/hyperv"), ("a directory for copies", "/mnt")]
    plan = Plan(PLAN.freeze, (Skipped(mount("/mnt", "0:50", "tmpfs"), ""),))
    assert kinds(plan, proc, own_files=own) == [("swap", "/var"), ("own_files", "/var")]
    assert kinds(plan, proc, journal=str(tmp_path)) == [("swap", "/var"), ("journal", "/")]


def disks(sysfs: Path, *names: str) -> None:
    for number, name in enumerate(names):
        place = sysfs / "devices" / "host" / name
        place.mkdir(parents=True)
        (place / "device").symlink_to("..")
        blocks = sysfs / "dev" / "block"
        blocks.mkdir(parents=True, exist_ok=True)
        (blocks / f"8:{number}").symlink_to(place)
    volume = sysfs / "devices" / "virtual" / "dm-0" / "slaves"
    volume.mkdir(parents=True)
    for name in names:
        (volume / name).symlink_to(sysfs / "devices" / "host" / name)
    (sysfs / "dev" / "block" / "253:0").symlink_to(volume.parent)


def test_what_lies_on_several_disks_needs_them_all(proc: Path, tmp_path: Path) -> None:
    disks(tmp_path / "sys", "sda", "sdb", "sdc")
    plan = Plan((mount("/pool", "253:0"), mount("/", "8:0")), ())
    assert kinds(plan, proc, tmp_path / "sys") == [("disks", "/pool")]
    (found,) = find_hazards(plan, proc=str(proc), sysfs=str(tmp_path / "sys"), journal=str(proc / "none"))
    assert "lies on 3 disks (sda, sdb, sdc)" in found.what


def process(proc: Path, pid: int, name: str) -> None:
    (proc / str(pid) / "fd").mkdir(parents=True)
    (proc / str(pid) / "fdinfo").mkdir()
    (proc / str(pid) / "comm").write_text(f"{name}\n")
    (proc / str(pid) / "cgroup").write_text(f"0::/system.slice/{name}.service\n")


def test_what_only_another_namespace_has_is_named_by_who_is_there(proc: Path) -> None:
    process(proc, 77, "postgres")
    plan = Plan((mount("/pg", "8:9", process=77), ROOT), ())
    assert kinds(plan, proc) == [("namespace", "/pg")]
    (found,) = find_hazards(plan, proc=str(proc), sysfs=str(proc / "sys"), journal=str(proc / "none"))
    assert "where postgres (process 77, postgres.service) is" in found.what
    gone = Plan((mount("/pg", "8:9", process=78), ROOT), ())
    (found,) = find_hazards(gone, proc=str(proc), sysfs=str(proc / "sys"), journal=str(proc / "none"))
    assert "where process 78 is" in found.what


@pytest.mark.parametrize(
    ("name", "path", "flags", "expected"),
    [
        ("rsyslogd", "/var/log/messages", "0102001", [("log", "/var")]),
        ("auditd", "/var/log/audit/audit.log", "0102001", [("log", "/var")]),
        ("syslog-ng", "/messages", "02", [("log", "/")]),
        ("rsyslogd", "/var/log/messages", "0100000", []),  # it only reads
        ("rsyslogd", "socket:[77]", "02", []),
        ("rsyslogd", "/mnt/log", "02", []),  # elsewhere
        ("cat", "/var/log/messages", "02", []),
    ],
)
def test_programs_for_which_others_wait(
    proc: Path, name: str, path: str, flags: str, expected: list[tuple[str, str]]
) -> None:
    process(proc, 7, name)
    (proc / "7" / "fd" / "3").symlink_to(path)
    (proc / "7" / "fd" / "4").symlink_to(path)
    for descriptor in "34":
        (proc / "7" / "fdinfo" / descriptor).write_text(f"pos:\t0\nflags:\t{flags}\nmnt_id:\t2\n")
    plan = Plan(PLAN.freeze, (Skipped(mount("/mnt", "0:50", "tmpfs"), ""),))
    assert kinds(plan, proc) == expected


def test_the_newest_of_the_deepest_mounts_holds_a_path() -> None:
    hidden, over = mount("/var/log", "8:3", id=5), mount("/var/log", "0:9", "tmpfs", id=6)
    elsewhere = mount("/var/log/journal", "8:4", id=9, process=77)
    plan = Plan((elsewhere, hidden, VAR, ROOT), (Skipped(over, ""),))
    assert plan.holder_of("/var/log/journal") is None
    assert plan.holder_of("/var/lib") is VAR
    assert plan.holder_of("/variable") is ROOT
