# SPDX-License-Identifier: Apache-2.0
"""The states of the freezers, with plans that contain nothing that could be frozen."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hvring.errors import EffectError
from hvring.guest.freezer import RehearsedFreezer, SystemFreezer
from hvring.guest.mounts import Filesystem, Mount, Plan

ROOT = Path(__file__).parents[2]
EMPTY = Plan((), ())

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="needs root: the freezer refuses to start without CAP_SYS_ADMIN"
)


@needs_root
def test_an_empty_plan_goes_through_all_states() -> None:
    freezer = SystemFreezer(lambda: EMPTY)
    assert freezer.ready
    freezer.freeze()
    assert freezer.frozen
    freezer.thaw()
    assert not freezer.frozen


@needs_root
def test_a_program_with_threads_may_freeze() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        freezer = SystemFreezer(lambda: EMPTY)
        freezer.freeze()
        freezer.thaw()
    finally:
        stop.set()
        thread.join()


@needs_root
def test_a_mount_point_that_is_gone_is_named(tmp_path: Path) -> None:
    gone = Mount(1, "8:1", str(tmp_path / "gone"), "ext4", "/dev/sda1", False)
    freezer = SystemFreezer(lambda: Plan((Filesystem((gone,)),), ()))
    with pytest.raises(EffectError, match=r"gone .*No such file"):
        freezer.freeze()
    assert not freezer.frozen


@needs_root
def test_a_mount_hidden_under_another_one_is_not_frozen_in_its_place() -> None:
    # No mount has the id 0. Should the check fail, nothing happens: the kernel cannot freeze /proc.
    hidden = Mount(0, "8:1", "/proc", "ext4", "/dev/sda1", False)
    freezer = SystemFreezer(lambda: Plan((Filesystem((hidden,)),), ()))
    with pytest.raises(EffectError, match="hidden under another mount"):
        freezer.freeze()
    assert not freezer.frozen


def test_without_the_right_to_freeze_it_is_not_ready() -> None:
    if os.geteuid() != 0:
        assert not SystemFreezer(lambda: EMPTY).ready
        return
    code = (
        "import os\n"
        "from hvring.guest.freezer import SystemFreezer\n"
        "from hvring.guest.mounts import Plan\n"
        "os.setuid(65534)\n"
        "print(SystemFreezer(lambda: Plan((), ())).obstacle())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "CAP_SYS_ADMIN" in done.stdout


def test_a_rehearsal_keeps_the_states_and_records_the_steps() -> None:
    mount = Mount(1, "8:1", "/data", "ext4", "/dev/sda1", False)
    freezer = RehearsedFreezer(lambda: Plan((Filesystem((mount,)),), ()))
    assert freezer.ready
    freezer.freeze()
    freezer.freeze()
    assert freezer.frozen
    freezer.thaw()
    freezer.thaw()
    assert not freezer.frozen
    assert freezer.events == ["freeze /data", "thaw"]
