# SPDX-License-Identifier: Apache-2.0
"""Real mounts that others made: hung, hidden, dead, on several devices, in other namespaces, in another order."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from writers import TIMEOUT, wait_for

pytestmark = pytest.mark.root


def test_an_ordinary_users_hung_fuse_is_neither_opened_nor_a_veto(
    namespace: Any, hang: Callable[[str], str], start: Any, write: Any
) -> None:
    mount, hung = namespace.mount_image("a"), hang("hung")
    service = start([mount], rules={"only": [mount, hung], "loops": [mount]})
    assert [hung, "FUSE cannot be frozen"] in service.ask("skipped")
    assert service.ask("freeze") is None
    writer = write(mount)
    writer.wait_until_blocked()
    assert service.ask("thaw") is None
    assert writer.has_written()


def test_a_disk_that_cannot_be_opened_in_time_fails_the_freeze_by_name_and_hangs_nobody(
    namespace: Any, hang: Callable[[str], str], start: Any, write: Any
) -> None:
    mount, hung = namespace.mount_image("a"), hang("hung")
    service = start([mount], open_timeout=0.5, behind=[f"{hung}/disk"])
    answer = service.ask("freeze")
    assert answer.startswith(f"EffectError: cannot open {hung}/disk (/dev/sdz, ext4): opening it hangs")
    assert service.ask("frozen") is False
    assert write(mount).has_written()
    assert service.ask("children") == []


def test_the_plan_for_people_opens_nothing(namespace: Any, hang: Callable[[str], str], start: Any) -> None:
    mount, hung = namespace.mount_image("a"), hang("hung")
    service = start([mount], behind=[f"{hung}/disk"])
    assert service.ask("plan") == [f"{hung}/disk", mount]


def test_a_hidden_mount_is_told_and_stops_nothing(namespace: Any, start: Any, write: Any) -> None:
    below, above = namespace.mount_image("data"), namespace.mount_image("above")
    namespace.run("mount", "--bind", above, below)
    try:
        service = start([above], rules={"only": [below], "loops": [below]})
        assert service.ask("freeze") is None
        assert "hidden under another mount" in service.ask("summary")
        assert service.ask("thaw") is None
    finally:
        namespace.run("umount", below)


#: As when its disk is taken away: EXT4_IOC_SHUTDOWN (and XFS_IOC_GOINGDOWN), without a flush.
SHUT_DOWN = """
import fcntl, os, struct, sys
fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587D, struct.pack("I", 2))
"""


@pytest.mark.parametrize(("kind", "size"), [("ext4", 16), ("xfs", 320)])
def test_a_file_system_that_is_shut_down_is_told_and_stops_nothing(
    namespace: Any, start: Any, write: Any, kind: str, size: int
) -> None:
    dead, alive = namespace.mount_image("dead", kind=kind, size=size), namespace.mount_image("alive")
    namespace.run(sys.executable, "-c", SHUT_DOWN, dead)
    service = start([dead, alive])
    assert service.ask("freeze") is None
    assert f"not frozen: {dead}" in service.ask("summary")
    writer = write(alive)
    writer.wait_until_blocked()
    assert service.ask("thaw") is None
    assert writer.has_written()


@pytest.mark.parametrize(("kind", "size"), [("xfs", 320), ("btrfs", 128)])
def test_other_kinds_of_file_systems_freeze_and_thaw(
    namespace: Any, start: Any, write: Any, kind: str, size: int
) -> None:
    mount = namespace.mount_image("a", kind=kind, size=size)
    service = start([mount], rules={"only": [mount], "loops": [mount]})
    for _ in range(2):
        assert service.ask("freeze") is None
        writer = write(mount)
        writer.wait_until_blocked()
        assert service.ask("thaw") is None
        assert writer.has_written()


def test_a_disk_that_only_a_services_own_namespace_has_is_frozen(
    namespace: Any, start: Any, write: Any, processes: contextlib.ExitStack
) -> None:
    image, target = str(namespace.folder / "pg.img"), str(namespace.folder / "pg")
    ordinary = namespace.mount_image("a")
    os.mkdir(target)
    namespace.run("truncate", "--size=16M", image)
    namespace.run("mkfs.ext4", "-q", "-F", image)
    script = f"mount -o loop {image} {target} && echo up && while echo x > {target}/wal; do read go; echo written; done"
    other = subprocess.Popen(
        namespace.inside("unshare", "--mount", "--propagation", "private", "sh", "-c", script),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert other.stdout is not None
    assert other.stdin is not None
    processes.callback(other.communicate)
    processes.callback(other.kill)
    assert other.stdout.readline() == b"up\n"
    service = start([ordinary], rules={"only": [ordinary, target], "loops": [ordinary, target]})
    assert service.ask("plan") == [target, ordinary]
    assert service.ask("freeze") is None
    other.stdin.write(b"\n")
    other.stdin.flush()
    assert other.stdout.readline() == b"written\n"  # what was written before, and now it writes again
    wait_for(lambda: Path(f"/proc/{other.pid}/wchan").read_text() == "percpu_rwsem_wait")
    assert service.ask("thaw") is None
    other.stdin.write(b"\n")
    other.stdin.flush()
    assert other.stdout.readline() == b"written\n"


def test_in_a_cloned_namespace_an_image_still_comes_first(namespace: Any, start: Any, write: Any) -> None:
    # There the table is ordered by the tree of mounts, and not by time.
    other = namespace.mount_image("z")
    holder = namespace.mount_image("a", size=64)
    inner = namespace.mount_image("sub", image_folder=holder, below=other)
    targets = [inner, other, holder]
    service = start(targets, rules={"only": targets, "loops": targets}, cloned=True, freeze_timeout=TIMEOUT)
    order = service.ask("plan")
    assert order.index(inner) < order.index(holder)
    assert service.ask("freeze") is None
    writer = write(inner)
    writer.wait_until_blocked()
    assert service.ask("thaw") is None
    assert writer.has_written()
