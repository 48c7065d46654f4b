# SPDX-License-Identifier: Apache-2.0
"""The states of the freezers, with plans that contain nothing that could be frozen."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from hvring.errors import EffectError
from hvring.guest import guarded
from hvring.guest.freezer import RehearsedFreezer, SystemFreezer
from hvring.guest.launch import PLAIN, Way, ways
from hvring.guest.mounts import Filesystem, Mount, Plan
from hvring.pending import Pending, settle

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


@contextmanager
def stopped(processes: list[int]) -> Iterator[None]:
    """A guardian may be done before it was asked, as it seems to who is held up; a stopped one is not."""
    assert processes
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in processes:
            os.kill(pid, signal.SIGCONT)


def next_step(work: Pending[None] | None) -> Pending[None] | None:
    assert isinstance(work, Pending)
    poll = select.poll()
    poll.register(work.descriptor, select.POLLIN)
    poll.poll(max(0.0, work.at - time.monotonic()) * 1000)
    return work.resume()


@needs_root
def test_freezes_and_thaws_never_block_and_leave_no_process(children: Callable[[], list[int]]) -> None:
    freezer = SystemFreezer(lambda: EMPTY, blocking=False)
    for _ in range(2):
        work = freezer.freeze()
        assert isinstance(work, Pending)
        assert freezer.ready  # for whoever is going to wait
        assert not freezer.frozen
        settle(work)
        assert freezer.frozen
        assert freezer.freeze() is None
        with stopped(children()):
            thaw = freezer.thaw()
            assert isinstance(thaw, Pending)
        settle(thaw)
        assert not freezer.frozen
        assert freezer.thaw() is None
        assert children() == []


@needs_root
@pytest.mark.parametrize("steps", [0, 1, 2, 20])
def test_a_freeze_that_is_broken_off_ends_thawed_and_the_next_one_works(
    steps: int, children: Callable[[], list[int]]
) -> None:
    freezer = SystemFreezer(lambda: EMPTY, blocking=False)
    work = freezer.freeze()
    for _ in range(steps):
        work = work and next_step(work)
    settle(freezer.thaw())
    assert not freezer.frozen
    assert children() == []
    settle(freezer.freeze())
    settle(freezer.thaw())


@needs_root
def test_a_freeze_while_an_earlier_one_is_not_thawed_is_refused(children: Callable[[], list[int]]) -> None:
    freezer = SystemFreezer(lambda: EMPTY, blocking=False)
    settle(freezer.freeze())
    with stopped(children()):
        thaw = freezer.thaw()
        with pytest.raises(EffectError, match="not known to be thawed"):
            freezer.freeze()
    settle(thaw)
    settle(freezer.freeze())
    settle(freezer.thaw())


@needs_root
def test_whoever_is_interrupted_while_it_waits_leaves_nothing_behind(
    children: Callable[[], list[int]],
) -> None:
    freezer = SystemFreezer(lambda: EMPTY, blocking=False)
    work = freezer.freeze()
    assert isinstance(work, Pending)
    work.cancel()
    settle(freezer.thaw())
    assert children() == []


@needs_root
def test_a_guardian_killed_before_it_began_is_a_failure_and_nothing_worse(
    children: Callable[[], list[int]],
) -> None:
    freezer = SystemFreezer(lambda: EMPTY, blocking=False)
    work = freezer.freeze()
    (guardian,) = children()
    os.kill(guardian, signal.SIGKILL)
    with pytest.raises(EffectError, match="does not start"):
        settle(work)
    assert freezer.ready
    assert children() == []


@needs_root
def test_a_guardian_killed_in_the_hold_makes_a_descriptor_readable(children: Callable[[], list[int]]) -> None:
    freezer = SystemFreezer(lambda: EMPTY, blocking=False)
    settle(freezer.freeze())
    assert freezer.lost() is None
    assert select.select([freezer.watch()], [], [], 0)[0] == []
    (guardian,) = children()
    os.kill(guardian, signal.SIGKILL)
    while freezer.lost() is None:  # its descriptors are closed one by one
        assert select.select([freezer.watch()], [], [], 30)[0]
    assert freezer.lost() == "the guardian was killed"
    with pytest.raises(EffectError, match="thawed before that was asked for: the guardian was killed"):
        settle(freezer.thaw())
    assert not freezer.frozen
    assert children() == []


@needs_root
def test_a_way_that_does_not_work_leads_to_the_next_one(
    children: Callable[[], list[int]], tmp_path: Path
) -> None:
    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\nexec sleep 1000\n")
    silent.chmod(0o755)
    ways = [Way(("/nowhere",), 30.0), Way(("/bin/false",), 30.0), Way((str(silent),), 0.1), PLAIN]
    freezer = SystemFreezer(lambda: EMPTY, blocking=False, ways=lambda: ways)
    settle(freezer.freeze())
    assert freezer.lost() is None
    settle(freezer.thaw())
    assert children() == []


@needs_root
def test_a_guardian_that_was_to_be_apart_and_is_not_leads_to_the_next_way() -> None:
    freezer = SystemFreezer(lambda: EMPTY, blocking=False, ways=lambda: [Way(("/usr/bin/env",), 30.0), PLAIN])
    settle(freezer.freeze())
    assert freezer._guarded is not None
    assert freezer._guarded._way is PLAIN
    settle(freezer.thaw())


@pytest.mark.parametrize("manager", ["accepts nothing", "closes", "is gone", "starts something else"])
@needs_root
def test_a_socket_behind_which_no_guardian_begins_leads_to_the_next_way(
    children: Callable[[], list[int]], tmp_path: Path, manager: str
) -> None:
    path = str(tmp_path / "guardian")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener, ExitStack() as kept:
        listener.bind(path)
        listener.listen()

        def take() -> None:
            connection, _ = listener.accept()
            if manager == "closes":
                connection.close()
            else:
                connection.send(b"hello")
                kept.enter_context(connection)

        thread = threading.Thread(target=take, daemon=True)
        if manager == "is gone":
            os.unlink(path)
        elif manager != "accepts nothing":
            thread.start()
        freezer = SystemFreezer(lambda: EMPTY, blocking=False, ways=lambda: [Way((), 0.1, path), PLAIN])
        settle(freezer.freeze())
        assert freezer.lost() is None
        assert freezer._guarded is not None
        assert freezer._guarded._way is PLAIN
        assert len(children()) == 1
        settle(freezer.thaw())
        assert children() == []
        if thread.ident is not None:
            thread.join()


def test_only_a_socket_of_this_user_is_asked_for_a_guardian(tmp_path: Path) -> None:
    path = str(tmp_path / "guardian")
    nowhere = str(tmp_path / "nowhere")
    assert ways({}, nowhere, path) == [PLAIN]
    Path(path).touch()
    assert ways({}, nowhere, path) == [PLAIN]
    os.unlink(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        assert [way.socket for way in ways({}, nowhere, path)] == [path, ""]
        if os.geteuid() == 0:
            os.chown(path, 12345, 12345)
            assert ways({}, nowhere, path) == [PLAIN]


def test_how_a_guardian_is_started_depends_on_who_started_us(tmp_path: Path) -> None:
    booted, user = str(tmp_path), {"MANAGERPID": "77", "XDG_RUNTIME_DIR": "/run/user/0"}
    unit = {"INVOCATION_ID": "x"}
    assert ways(unit, str(tmp_path / "nowhere")) == [PLAIN]
    assert [way.prefix[:2] for way in ways(unit, booted)] == [("systemd-run", "--scope"), ()]
    with_user = ways({**unit, **user}, booted)
    assert ["--user" in way.prefix for way in with_user] == [True, False, False]


def test_the_table_of_the_module_is_the_one_of_the_code() -> None:
    assert guarded.__doc__ is not None
    assert guarded.table() in guarded.__doc__


@needs_root
def test_a_program_with_threads_may_freeze() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        freezer = SystemFreezer(lambda: EMPTY, blocking=False)
        settle(freezer.freeze())
        settle(freezer.thaw())
    finally:
        stop.set()
        thread.join()


@needs_root
def test_what_cannot_be_opened_is_told_and_stops_nothing(tmp_path: Path) -> None:
    gone = Mount(1, "8:1", str(tmp_path / "gone"), "ext4", "/dev/sda1", False)
    # No mount has the id 0. Should the check fail, nothing happens: the kernel cannot freeze /proc.
    hidden = Mount(0, "8:2", "/proc", "ext4", "/dev/sda2", False)
    freezer = SystemFreezer(lambda: Plan((Filesystem((gone,)), Filesystem((hidden,))), ()), blocking=False)
    settle(freezer.freeze())
    assert "nothing; not frozen: " in freezer.summary
    assert "gone (/dev/sda1, ext4): No such file" in freezer.summary
    assert "/proc (/dev/sda2, ext4): hidden under another mount" in freezer.summary
    settle(freezer.thaw())


def test_without_the_right_to_freeze_it_is_not_ready() -> None:
    if os.geteuid() != 0:
        assert not SystemFreezer(lambda: EMPTY, blocking=False).ready
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
