# SPDX-License-Identifier: Apache-2.0
"""Real freezes of file systems in image files, inside a private mount namespace, never of another mount."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from writers import PATIENCE, wait_for, write_until_blocked

pytestmark = pytest.mark.root

PROGRAM = Path(__file__).with_name("freezer_process.py")
ROOT = Path(__file__).parents[2]


class Service:
    """freezer_process.py in the namespace."""

    def __init__(self, namespace: Any, targets: list[str], **more: Any) -> None:
        settings = {
            "targets": targets,
            "below": str(namespace.folder),
            "outside": os.readlink("/proc/self/ns/mnt"),
            "deadline": 2 * PATIENCE,  # not what a test waits for
            "freeze_timeout": PATIENCE,
            **more,
        }
        self._process = subprocess.Popen(
            namespace.inside(sys.executable, "-W", "error", str(PROGRAM), json.dumps(settings)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def ask(self, word: str) -> Any:
        self.tell(word)
        return self.answer()

    def tell(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(word.encode() + b"\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        assert self._process.stdout is not None
        assert select.select([self._process.stdout], [], [], PATIENCE)[0], "the service hangs"
        line = self._process.stdout.readline()
        assert line, "the service ended"
        return json.loads(line)

    def guardian(self) -> int:
        """The process id of its guardian, without asking it."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        (pid,) = children.read_text().split()
        return int(pid)

    def kill(self, by: signal.Signals = signal.SIGKILL) -> None:
        self._process.send_signal(by)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def start(namespace: Any, processes: contextlib.ExitStack) -> Any:
    """start(targets, **settings) -> Service"""

    def start_service(targets: list[str], **more: Any) -> Service:
        service = Service(namespace, targets, **more)
        processes.callback(service.kill)
        return service

    return start_service


def test_a_frozen_mount_blocks_writers_until_the_thaw(namespace: Any, start: Any, write: Any) -> None:
    mount = namespace.mount_image("a")
    service = start([mount])
    assert service.ask("obstacle") is None
    assert service.ask("freeze") is None
    assert service.ask("frozen") is True
    writer = write(mount)
    writer.wait_until_blocked()
    assert service.ask("thaw") is None
    assert writer.has_written()
    assert service.ask("frozen") is False
    assert service.ask("children") == []


def test_a_second_freeze_and_a_second_thaw_change_nothing(namespace: Any, start: Any, write: Any) -> None:
    mount = namespace.mount_image("a")
    service = start([mount])
    assert service.ask("thaw") is None
    assert [service.ask("freeze"), service.ask("freeze")] == [None, None]
    assert [service.ask("thaw"), service.ask("thaw")] == [None, None]
    assert write(mount).has_written()


def test_mounts_can_be_frozen_again_after_the_thaw(namespace: Any, start: Any, write: Any) -> None:
    mounts = [namespace.mount_image("a"), namespace.mount_image("b")]
    service = start(mounts)
    for _ in range(3):
        assert service.ask("freeze") is None
        writers = [write(mount) for mount in mounts]
        for writer in writers:
            writer.wait_until_blocked()
        assert service.ask("thaw") is None
        assert all(writer.has_written() for writer in writers)


def test_a_killed_service_leaves_nothing_frozen(namespace: Any, start: Any, write: Any) -> None:
    mount = namespace.mount_image("a")
    service = start([mount])
    assert service.ask("freeze") is None
    writer = write(mount)
    writer.wait_until_blocked()
    service.kill()
    assert writer.has_written()


def test_the_deadline_thaws_and_the_late_thaw_says_so(namespace: Any, start: Any, write: Any) -> None:
    mount = namespace.mount_image("a")
    service = start([mount], deadline=1.0)
    assert service.ask("freeze") is None
    assert write(mount).has_written()
    assert service.ask("frozen") is False
    assert "at its deadline" in service.ask("thaw")
    assert service.ask("freeze") is None
    assert service.ask("thaw") is None


def test_sigterm_to_the_guardian_thaws(namespace: Any, start: Any, write: Any) -> None:
    mount = namespace.mount_image("a")
    service = start([mount])
    assert service.ask("freeze") is None
    writer = write(mount)
    writer.wait_until_blocked()
    guardian = service.guardian()
    os.kill(guardian, signal.SIGTERM)
    assert writer.has_written()
    assert "because of a signal" in service.ask("thaw")


def test_the_service_thaws_in_place_of_a_killed_guardian(namespace: Any, start: Any, write: Any) -> None:
    mount = namespace.mount_image("a")
    service = start([mount])
    assert service.ask("freeze") is None
    writer = write(mount)
    writer.wait_until_blocked()
    guardian = service.guardian()
    os.kill(guardian, signal.SIGKILL)
    wait_for(lambda: is_dead(guardian))
    assert service.ask("frozen") is True
    assert service.ask("thaw") is None
    assert writer.has_written()


def test_nothing_is_logged_while_frozen(namespace: Any, start: Any) -> None:
    mount = namespace.mount_image("a")
    log = f"{mount}/log"  # a service that writes into it while it is frozen hangs
    service = start([mount], log=log)
    for word in ("freeze", "freeze", "frozen", "obstacle", "thaw", "thaw"):
        assert service.ask(word) in (None, True)
    assert namespace.run("stat", "--format=%s", log) == "0"


def test_a_mount_that_was_frozen_already_is_no_failure(namespace: Any, start: Any, write: Any) -> None:
    mount = namespace.mount_image("a")
    first, second = start([mount]), start([mount])
    assert first.ask("freeze") is None
    assert second.ask("freeze") is None
    assert second.ask("thaw") is None
    assert write(mount).has_written()
    assert first.ask("thaw") is None  # nothing left to thaw is no failure, either


def test_one_that_cannot_be_frozen_is_named_and_the_others_are_thawed(
    namespace: Any, start: Any, write: Any
) -> None:
    good, bad = namespace.mount_image("good"), namespace.mount_tmpfs("bad", "-o", "size=1m")
    service = start([good, bad])
    answer = service.ask("freeze")
    assert bad in answer
    assert "exclude it" in answer
    assert service.ask("frozen") is False
    assert service.ask("obstacle") is None
    assert write(good).has_written()


def test_a_freeze_that_hangs_fails_in_time_and_everything_thaws(
    namespace: Any, start: Any, write: Any
) -> None:
    # An image frozen after the file system that it lies on: its last write never ends.
    outer = namespace.mount_image("outer")
    inner = namespace.mount_image("inner", image_folder=outer)
    service = start([outer, inner], freeze_timeout=2.0)
    answer = service.ask("freeze")
    assert inner in answer
    assert "does not end" in answer
    assert write(outer).has_written()
    assert write(inner).has_written()
    wait_for(lambda: service.ask("obstacle") is None)
    assert service.ask("children") == []


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGINT])
def test_a_service_ended_while_a_freeze_hangs_leaves_nothing_frozen(
    namespace: Any, start: Any, write: Any, by: signal.Signals
) -> None:
    outer = namespace.mount_image("outer")
    inner = namespace.mount_image("inner", image_folder=outer)
    service = start([outer, inner])
    service.tell("freeze")
    writers = write_until_blocked(write, outer), write(inner)
    service.kill(by)
    assert all(writer.has_written() for writer in writers)


def test_a_guardian_killed_while_a_freeze_hangs_leaves_nothing_frozen(
    namespace: Any, start: Any, write: Any
) -> None:
    outer = namespace.mount_image("outer")
    inner = namespace.mount_image("inner", image_folder=outer)
    service = start([outer, inner])
    service.tell("freeze")
    writers = write_until_blocked(write, outer), write(inner)
    os.kill(service.guardian(), signal.SIGKILL)
    assert "the guardian was killed" in service.answer()
    assert all(writer.has_written() for writer in writers)


def test_one_that_does_not_block_knows_that_some_are_frozen_and_can_break_it_off(
    namespace: Any, start: Any, write: Any
) -> None:
    outer = namespace.mount_image("outer")
    inner = namespace.mount_image("inner", image_folder=outer)
    service = start([outer, inner], blocking=False)
    wait_for(lambda: "at work" in service.ask("freeze") and service.ask("frozen"))
    writers = write_until_blocked(write, outer), write(inner)
    wait_for(lambda: "at work" not in (service.ask("thaw") or ""))
    assert service.ask("frozen") is False
    assert all(writer.has_written() for writer in writers)
    wait_for(lambda: service.ask("obstacle") is None)
    assert service.ask("children") == []


def test_a_killed_service_is_noticed_although_a_child_of_it_lives_on(
    namespace: Any, start: Any, write: Any, processes: contextlib.ExitStack
) -> None:
    mount = namespace.mount_image("a")
    service = start([mount])
    assert service.ask("freeze") is None
    child = service.ask("fork")  # it has inherited the socket to the guardian
    processes.callback(os.kill, child, signal.SIGKILL)
    writer = write(mount)
    writer.wait_until_blocked()
    service.kill()
    assert writer.has_written()


def test_an_image_is_frozen_before_the_file_system_that_it_lies_on(
    namespace: Any, start: Any, write: Any
) -> None:
    outer = namespace.mount_image("outer")
    inner = namespace.mount_image("inner", image_folder=outer)
    service = start([outer, inner])
    order = service.ask("rules with loops")
    assert order == [inner, outer]
    ordered = start(order)
    assert ordered.ask("freeze") is None
    writers = [write(outer), write(inner)]
    for writer in writers:
        writer.wait_until_blocked()
    assert ordered.ask("thaw") is None
    assert all(writer.has_written() for writer in writers)


def test_mounts_on_loop_devices_are_left_alone_unless_asked_for(namespace: Any, start: Any) -> None:
    mount = namespace.mount_image("a")
    service = start([mount])
    assert [mount, "on a loop device"] in service.ask("rules")
    assert service.ask("rules with loops") == [mount]


def test_the_guardian_keeps_all_its_memory_locked(namespace: Any, start: Any) -> None:
    mount = namespace.mount_image("a")
    service = start([mount])
    assert service.ask("freeze") is None
    guardian = service.guardian()
    status = dict(line.split(":", 1) for line in Path(f"/proc/{guardian}/status").read_text().splitlines())
    assert status["Name"].strip() == "hvring-guardian"
    assert int(status["VmLck"].split()[0]) > 0
    assert int(status["VmLck"].split()[0]) >= 0.95 * int(status["VmSize"].split()[0])
    assert service.ask("thaw") is None


def is_dead(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True
