# SPDX-License-Identifier: Apache-2.0
"""Each mount of a plan is opened before there is a backup, by somebody who may hang."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hvring.guest import preflight as module
from hvring.guest.mounts import Filesystem, Mount, Plan
from hvring.guest.preflight import denials, preflight, try_to_open


def plan_of(*targets: Path) -> Plan:
    mounts = [Mount(n, f"8:{n}", str(t), "ext4", "/dev/x", False) for n, t in enumerate(targets)]
    return Plan(tuple(Filesystem((one,)) for one in mounts), ())


def test_what_can_be_opened_and_what_cannot(tmp_path: Path) -> None:
    found = preflight(plan_of(tmp_path, tmp_path / "gone"), proc=str(tmp_path), sysfs=str(tmp_path))
    assert [each["problem"] for each in found["order"]] == [None, os.strerror(errno.ENOENT)]
    assert found["order"][1]["remedy"]
    json.dumps(found)


def test_one_way_to_a_file_system_is_enough(tmp_path: Path) -> None:
    ways = tuple(
        Mount(n, "8:1", str(t), "ext4", "/dev/x", False) for n, t in enumerate((tmp_path / "no", tmp_path))
    )
    (each,) = preflight(Plan((Filesystem(ways),), ()), proc=str(tmp_path), sysfs=str(tmp_path))["order"]
    assert each["problem"] is None


def test_a_mount_that_hangs_is_said_to(tmp_path: Path, monkeypatch) -> None:
    opening = os.open

    def hangs(path: str, *args: int) -> int:
        if str(path).endswith("slow"):
            import time

            time.sleep(1000)
        return opening(path, *args)

    monkeypatch.setattr(os, "open", hangs)
    (tmp_path / "slow").mkdir()
    found = preflight(
        plan_of(tmp_path / "slow", tmp_path), open_timeout=1.5, proc=str(tmp_path), sysfs=str(tmp_path)
    )
    assert [each["problem"] for each in found["order"]] == ["opening it does not end within 1.5 s", None]


@pytest.mark.parametrize(
    ("active", "named"),
    [
        ("lockdown,capability,yama,selinux,bpf", ["selinux", "bpf"]),
        ("capability,apparmor\n", ["apparmor"]),
        ("capability", []),
    ],
)
def test_the_security_modules_that_may_deny(tmp_path: Path, active: str, named: list[str]) -> None:
    (tmp_path / "kernel" / "security").mkdir(parents=True)
    (tmp_path / "kernel" / "security" / "lsm").write_text(active)
    assert denials(str(tmp_path)) == named


@pytest.mark.skipif(os.geteuid() != 0, reason="what root may not do, a security module denies")
def test_a_denial_is_named(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "kernel" / "security").mkdir(parents=True)
    (tmp_path / "kernel" / "security" / "lsm").write_text("capability,selinux")
    monkeypatch.setattr(module, "try_to_open", lambda *_: errno.EACCES)
    (each,) = preflight(plan_of(tmp_path), proc=str(tmp_path), sysfs=str(tmp_path))["order"]
    assert "denied" in each["problem"]
    assert "selinux" in each["problem"]
    assert "ausearch" in each["remedy"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_who_is_not_root_is_told_to_be() -> None:
    program = """
import os, sys
from hvring.guest.mounts import Filesystem, Mount, Plan
from hvring.guest.preflight import preflight
os.mkdir(sys.argv[1], 0o700)
os.setgroups([]); os.setgid(65534); os.setuid(65534)
mount = Mount(1, "8:1", sys.argv[1], "ext4", "/dev/x", False)
print(preflight(Plan((Filesystem((mount,)),), ()))["order"][0])
"""
    folder = f"/tmp/hvring-preflight-{os.getpid()}"
    try:
        done = subprocess.run(
            [sys.executable, "-c", program, folder], capture_output=True, text=True, timeout=60, check=True
        )
    finally:
        os.rmdir(folder)
    assert "CAP_DAC_READ_SEARCH" in done.stdout


def test_nobody_is_left_behind(tmp_path: Path) -> None:
    def children() -> set[str]:
        tasks = Path("/proc/self/task").glob("*/children")
        return {pid for task in tasks for pid in task.read_text().split()}

    before = children()  # of other tests, perhaps
    assert try_to_open(Mount(1, "8:1", str(tmp_path), "ext4", "x", False), 10) == 0
    assert children() <= before
