# SPDX-License-Identifier: Apache-2.0
"""The states of the freezers, with plans that contain nothing that could be frozen."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hvring.errors import EffectBusyError, EffectError
from hvring.guest.freezer import RehearsedFreezer, SystemFreezer
from hvring.guest.hold import Hold
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


@pytest.fixture
def children() -> Callable[[], list[int]]:
    """children() -> those of this process that there were not before the test"""
    path = f"/proc/self/task/{threading.get_native_id()}/children"
    before = set(Path(path).read_text().split())
    return lambda: [int(pid) for pid in Path(path).read_text().split() if pid not in before]


def until_done(work: Callable[[], None]) -> int:
    """How often it was at work before it was done."""
    busy = 0
    while True:
        try:
            work()
        except EffectBusyError:
            busy += 1
            time.sleep(0.001)
        else:
            return busy


@needs_root
def test_one_that_does_not_block_is_asked_until_it_is_done(children: Callable[[], list[int]]) -> None:
    freezer = SystemFreezer(lambda: EMPTY, blocking=False)
    for _ in range(2):
        with pytest.raises(EffectBusyError):
            freezer.freeze()
        assert freezer.ready  # for whoever is going to wait
        assert not freezer.frozen
        until_done(freezer.freeze)
        assert freezer.frozen
        freezer.freeze()
        until_done(freezer.thaw)
        assert not freezer.frozen
        freezer.thaw()
        assert children() == []


@needs_root
@pytest.mark.parametrize("steps", [1, 2, 20])
def test_a_freeze_that_is_broken_off_ends_thawed_and_the_next_one_works(
    steps: int, children: Callable[[], list[int]]
) -> None:
    freezer = SystemFreezer(lambda: EMPTY, blocking=False)
    for _ in range(steps):
        with contextlib.suppress(EffectBusyError):
            freezer.freeze()
    assert until_done(freezer.thaw) > 0  # the guardian has to end
    assert not freezer.frozen
    assert children() == []
    until_done(freezer.freeze)
    until_done(freezer.thaw)


@needs_root
def test_a_freeze_behind_a_thaw_that_is_under_way_waits_for_it() -> None:
    freezer = SystemFreezer(lambda: EMPTY, blocking=False)
    until_done(freezer.freeze)
    with pytest.raises(EffectBusyError):
        freezer.thaw()
    until_done(freezer.freeze)
    assert freezer.frozen
    until_done(freezer.thaw)


@needs_root
def test_a_guardian_killed_before_it_began_is_a_failure_and_nothing_worse(
    children: Callable[[], list[int]],
) -> None:
    freezer = SystemFreezer(lambda: EMPTY, blocking=False)
    with pytest.raises(EffectBusyError):
        freezer.freeze()
    (guardian,) = children()
    os.kill(guardian, signal.SIGKILL)
    with pytest.raises(EffectError, match="does not start"):
        until_done(freezer.freeze)
    assert freezer.ready
    assert children() == []


@needs_root
def test_what_the_guardian_completes_after_the_freeze_was_broken_off_is_thawed() -> None:
    hold = Hold((), 60.0, 60.0)
    freeze = hold.freeze()
    for descriptor, _ in freeze:  # READY, and then FROZEN, which nobody reads any more
        assert select.select([descriptor], [], [], 30)[0]
        if hold._is_ordered:
            break
    freeze.close()
    assert not hold.holds()
    for descriptor, _ in hold.thaw(30.0):
        assert select.select([descriptor], [], [], 30)[0]
    process = hold.close()
    assert process is not None
    assert process.wait(30) == 0


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
