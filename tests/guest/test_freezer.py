# SPDX-License-Identifier: Apache-2.0
"""Real freezes of file systems in image files, inside a private mount namespace, never of another mount."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from writers import wait_for, write_until_blocked

pytestmark = pytest.mark.root


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


def test_a_killed_service_leaves_nothing_frozen(frozen: Any) -> None:
    _, service, writer = frozen
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


def test_sigterm_to_the_guardian_thaws(frozen: Any) -> None:
    _, service, writer = frozen
    guardian = service.guardian()
    os.kill(guardian, signal.SIGTERM)
    assert writer.has_written()
    assert "because of a signal" in service.ask("thaw")


def test_a_killed_guardian_is_noticed_at_once_and_all_is_thawed_without_it(frozen: Any) -> None:
    _, service, writer = frozen
    os.kill(service.guardian(), signal.SIGKILL)
    assert service.ask("lost") == "the guardian was killed"
    assert writer.has_written()
    assert "the guardian was killed" in service.ask("thaw")
    assert service.ask("frozen") is False
    assert [service.ask("freeze"), service.ask("thaw")] == [None, None]
    assert service.ask("children") == []


def test_a_stopped_guardian_is_not_needed_for_the_thaw_and_disturbs_nothing_later(
    frozen: Any, write: Any
) -> None:
    mount, service, writer = frozen
    guardian = service.guardian()
    os.kill(guardian, signal.SIGSTOP)
    assert service.ask("thaw") is None
    assert writer.has_written()
    assert service.ask("children") == []  # woken up in the next freeze, it would thaw that
    assert service.ask("freeze") is None
    second = write(mount)
    second.wait_until_blocked()
    assert service.ask("thaw") is None
    assert second.has_written()


@pytest.mark.parametrize("order", ["guardian first", "service first"])
def test_the_freezing_child_thaws_when_both_others_are_killed(frozen: Any, order: str) -> None:
    _, service, writer = frozen
    guardian = service.guardian()
    service.stop()  # nobody may be faster than the second signal
    if order == "guardian first":
        os.kill(guardian, signal.SIGKILL)
        service.kill()
    else:
        os.kill(guardian, signal.SIGSTOP)
        service.kill()
        os.kill(guardian, signal.SIGKILL)
    assert writer.has_written()


def test_the_freezing_child_thaws_when_the_service_is_killed_and_the_guardian_stopped(
    frozen: Any, processes: contextlib.ExitStack
) -> None:
    _, service, writer = frozen
    guardian = service.guardian()
    os.kill(guardian, signal.SIGSTOP)
    processes.callback(os.kill, guardian, signal.SIGKILL)
    service.kill()
    assert writer.has_written()


def test_a_guardian_and_its_child_stopped_are_not_needed(namespace: Any, start: Any, write: Any) -> None:
    mounts = [namespace.mount_image("a"), namespace.mount_image("b")]
    service = start(mounts)
    assert service.ask("freeze") is None
    writers = [write(mount) for mount in mounts]
    for writer in writers:
        writer.wait_until_blocked()
    os.killpg(service.guardian(), signal.SIGSTOP)
    assert service.ask("thaw") is None
    assert all(writer.has_written() for writer in writers)
    assert service.ask("children") == []


def test_nothing_is_logged_while_frozen(namespace: Any, start: Any) -> None:
    mount = namespace.mount_image("a")
    log = f"{mount}/log"  # a service that writes into it while it is frozen hangs
    service = start([mount], log=log)
    for word in ("freeze", "freeze", "frozen", "obstacle", "thaw", "thaw"):
        assert service.ask(word) in (None, True)
    assert namespace.run("stat", "--format=%s", log) == "0"


def test_a_freeze_of_somebody_else_is_told_and_outlives_ours(namespace: Any, start: Any, write: Any) -> None:
    theirs, ours = namespace.mount_image("theirs"), namespace.mount_image("ours")
    first, second = start([theirs]), start([theirs, ours])
    assert first.ask("freeze") is None
    assert second.ask("freeze") is None
    assert "frozen by somebody else" in second.ask("summary")
    on_theirs, on_ours = write(theirs), write(ours)
    on_ours.wait_until_blocked()
    on_theirs.wait_until_blocked()
    assert second.ask("thaw") is None
    assert on_ours.has_written()
    assert on_theirs.is_blocked()
    assert first.ask("thaw") is None
    assert on_theirs.has_written()


@pytest.mark.parametrize("by", ["guardian", "service"])
def test_a_freeze_of_somebody_else_outlives_the_end_of(
    namespace: Any, start: Any, write: Any, by: str
) -> None:
    theirs, ours = namespace.mount_image("theirs"), namespace.mount_image("ours")
    first, second = start([theirs]), start([theirs, ours])
    assert first.ask("freeze") is None
    assert second.ask("freeze") is None
    on_theirs, on_ours = write(theirs), write(ours)
    on_ours.wait_until_blocked()
    if by == "guardian":
        os.kill(second.guardian(), signal.SIGKILL)
        assert "killed" in second.ask("lost")
        assert "killed" in second.ask("thaw")
    else:
        second.kill()
    assert on_ours.has_written()
    on_theirs.wait_until_blocked()
    assert first.ask("thaw") is None
    assert on_theirs.has_written()


def test_one_that_cannot_be_frozen_is_told_and_stops_nothing(namespace: Any, start: Any, write: Any) -> None:
    good, bad = namespace.mount_image("good"), namespace.mount_tmpfs("bad", "-o", "size=1m")
    service = start([good, bad])
    assert service.ask("freeze") is None
    assert f"not frozen: {bad}" in service.ask("summary")
    writer = write(good)
    writer.wait_until_blocked()
    assert write(bad).has_written()
    assert service.ask("thaw") is None
    assert writer.has_written()


def test_a_freeze_that_hangs_fails_in_time_and_everything_thaws(
    namespace: Any, start: Any, write: Any
) -> None:
    # An image frozen after the file system that it lies on: its last write never ends.
    outer = namespace.mount_image("outer")
    inner = namespace.mount_image("inner", image_folder=outer)
    service = start([outer, inner], freeze_timeout=6.0)
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


def test_a_pending_freeze_knows_that_some_are_frozen_and_can_be_broken_off(
    namespace: Any, start: Any, write: Any
) -> None:
    outer = namespace.mount_image("outer")
    inner = namespace.mount_image("inner", image_folder=outer)
    service = start([outer, inner])
    service.ask("begin")
    assert service.ask("go on") is True
    writers = write_until_blocked(write, outer), write(inner)
    assert service.ask("thaw") is None
    assert service.ask("frozen") is False
    assert all(writer.has_written() for writer in writers)
    assert service.ask("children") == []


@pytest.mark.parametrize("signals", [(signal.SIGSTOP,), (signal.SIGKILL,), (signal.SIGSTOP, signal.SIGKILL)])
def test_a_pending_freeze_whose_guardian_stands_still_or_is_gone_can_be_broken_off(
    namespace: Any, start: Any, write: Any, signals: tuple[signal.Signals, ...]
) -> None:
    outer = namespace.mount_image("outer")
    inner = namespace.mount_image("inner", image_folder=outer)
    service = start([outer, inner])
    service.ask("begin")
    assert service.ask("go on") is True
    writers = write_until_blocked(write, outer), write(inner)
    for number in signals:
        os.kill(service.guardian(), number)
    assert service.ask("thaw") is None
    assert service.ask("frozen") is False
    assert all(writer.has_written() for writer in writers)
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
    both = [outer, inner]
    service = start(both, rules={"only": both, "loops": both})
    assert service.ask("plan") == [inner, outer]
    assert service.ask("freeze") is None
    writers = [write(outer), write(inner)]
    for writer in writers:
        writer.wait_until_blocked()
    assert service.ask("thaw") is None
    assert all(writer.has_written() for writer in writers)


def test_mounts_on_loop_devices_are_left_alone_unless_asked_for(namespace: Any, start: Any) -> None:
    mount = namespace.mount_image("a")
    assert [mount, "on a loop device"] in start([mount], rules={"only": [mount]}).ask("skipped")
    assert start([mount], rules={"only": [mount], "loops": [mount]}).ask("plan") == [mount]


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
