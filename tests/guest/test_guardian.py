# SPDX-License-Identifier: Apache-2.0
"""The thaw itself, on descriptors that are none: the kernel's side is played by the test."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from hvring.guest import guardian

Kernel = Callable[[dict[int, object]], list[int]]
MOUNTS = [1001, 1002, 1003]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """kernel({mount: errno, or an event to wait for}) -> the list of the mounts in the order of their FITHAW"""

    def install(behaviour: dict[int, object]) -> list[int]:
        thawed: list[int] = []

        def ioctl(mount: int, request: int, argument: int) -> int:
            assert (request, argument) == (0xC0045878, 0)
            thawed.append(mount)
            what = behaviour.get(mount)
            if isinstance(what, threading.Event):
                what.wait(60)
            elif isinstance(what, int):
                raise OSError(what, "played by the test")
            return 0

        monkeypatch.setattr(fcntl, "ioctl", ioctl)
        return thawed

    return install


@pytest.fixture
def thawing() -> guardian.Thawing:
    return guardian.Thawing(dict(enumerate(MOUNTS)))


def test_mounts_thaw_in_reverse_order(kernel: Kernel, thawing: guardian.Thawing) -> None:
    thawed = kernel({})
    assert thawing.attempt() == (-1, 0)
    assert thawed == [1003, 1002, 1001]
    assert thawing.left == {}


def test_threads_that_were_started_before_are_enough_unless_they_hang(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guardian, "_THAW_TURN", 0.01)
    monkeypatch.setattr(guardian, "_THAW_TIME", 0.2)
    started: list[threading.Thread] = []
    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda self: (started.append(self), start(self))[1])
    hold = threading.Event()
    thawed = kernel({1003: hold})
    hands = guardian.start_hands(999)
    assert len(hands) == 2
    assert thawed == [999, 999]
    for _ in range(3):
        assert guardian.Thawing({0: 1001, 1: 1002}, hands).attempt() == (-1, 0)
    assert len(hands) == len(started) == 2
    stuck = guardian.Thawing({0: 1001, 1: 1003, 2: 1003}, hands)
    assert stuck.attempt() == (2, errno.ETIMEDOUT)
    assert list(stuck.left) == [1, 2]
    assert len(started) == 3
    again = guardian.Thawing({0: 1001}, hands)  # by none of those that hang
    assert again.attempt() == (-1, 0)
    assert len(started) == 3
    hold.set()
    monkeypatch.setattr(guardian, "_THAW_TIME", 60.0)
    assert stuck.attempt() == (-1, 0)
    assert len(hands) == 3


@pytest.mark.parametrize("error", [errno.EINVAL, errno.EOPNOTSUPP])
def test_one_that_was_not_frozen_is_no_error(kernel: Kernel, thawing: guardian.Thawing, error: int) -> None:
    thawed = kernel(dict.fromkeys(MOUNTS, error))
    assert thawing.attempt() == (-1, 0)
    assert len(thawed) == 3


def test_one_that_cannot_be_thawed_is_told_and_does_not_stop_the_others(
    kernel: Kernel, thawing: guardian.Thawing
) -> None:
    thawed = kernel({1002: errno.EIO, 1001: errno.EPERM})
    assert thawing.attempt() == (1, errno.EIO)
    assert thawed == [1003, 1002, 1001]
    assert thawing.left == {0: 1001, 1: 1002}


def test_what_could_not_be_thawed_is_tried_again_until_it_can(
    kernel: Kernel, thawing: guardian.Thawing, monkeypatch: pytest.MonkeyPatch
) -> None:
    behaviour: dict[int, object] = {1002: errno.EIO}
    thawed = kernel(behaviour)
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(guardian.time, "sleep", lambda seconds: behaviour.clear())
    thawing.finish(lambda index, error: told.append((index, error)))
    assert told == [(1, errno.EIO)]
    assert thawed == [1003, 1002, 1001, 1002]
    assert thawing.left == {}


def test_one_that_hangs_does_not_stop_the_others_and_is_not_begun_twice(
    kernel: Kernel, thawing: guardian.Thawing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guardian, "_THAW_TURN", 0.05)
    monkeypatch.setattr(guardian, "_THAW_TIME", 0.1)
    hanging = threading.Event()
    thawed = kernel({1003: hanging})
    try:
        assert thawing.attempt() == (2, errno.ETIMEDOUT)
        assert thawing.attempt() == (2, errno.ETIMEDOUT)
        assert thawed == [1003, 1002, 1001]
    finally:
        hanging.set()
    monkeypatch.setattr(guardian, "_THAW_TIME", 60.0)
    assert thawing.attempt() == (-1, 0)
    assert thawing.left == {}


def test_one_that_waits_for_another_is_thawed_in_the_same_attempt(
    kernel: Kernel, thawing: guardian.Thawing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an image does that was frozen after the file system that it lies on."""
    outer = threading.Event()
    thawed = kernel({1003: outer})
    thaw = fcntl.ioctl

    def ioctl(mount: int, request: int, argument: int) -> int:
        result: int = thaw(mount, request, argument)
        if mount == 1001:
            outer.set()
        return result

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    assert thawing.attempt() == (-1, 0)
    assert thawed == [1003, 1002, 1001]


def test_without_room_for_a_thread_the_thaw_still_happens(
    kernel: Kernel, thawing: guardian.Thawing, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    thawed = kernel({1002: errno.EIO})
    assert thawing.attempt() == (1, errno.EIO)
    assert thawed == [1003, 1002, 1001]


@pytest.mark.parametrize(
    ("ours", "theirs", "apart"),
    [
        ("0::/system.slice/run-u1.scope", "0::/system.slice/hvring.service", True),
        ("0::/system.slice/hvring.service", "0::/system.slice/hvring.service", False),
        # Killing a control group kills what is below it, too.
        ("0::/system.slice/hvring.service/guardian", "0::/system.slice/hvring.service", False),
        ("0::/system.slice/hvring.service2", "0::/system.slice/hvring.service", True),
        ("0::/", "0::/", False),
        # An older set-up: the manager kills by the hierarchy that is named after it.
        ("1:name=systemd:/run-u1.scope\n0::/", "1:name=systemd:/a.service\n0::/", True),
        ("1:name=systemd:/a.service\n0::/", "1:name=systemd:/a.service\n0::/", False),
        ("1:name=systemd:/run-u1.scope\n0::/a.service", "1:name=systemd:/a.service\n0::/a.service", False),
        ("5:cpu:/x", "5:cpu:/y", False),
    ],
)
def test_whether_what_kills_the_service_kills_the_guardian(
    tmp_path: Path, ours: str, theirs: str, apart: bool
) -> None:
    for process, groups in (("self", ours), ("77", theirs)):
        (tmp_path / process).mkdir()
        (tmp_path / process / "cgroup").write_text(groups + "\n")
    assert guardian.is_apart(77, str(tmp_path)) is apart
    assert not guardian.is_apart(78, str(tmp_path))  # nobody knows


def mount_id(path: str) -> int:
    descriptor = os.open(path, os.O_PATH)
    try:
        facts = Path(f"/proc/self/fdinfo/{descriptor}").read_text()
        return int(next(line.split()[1] for line in facts.splitlines() if line.startswith("mnt_id:")))
    finally:
        os.close(descriptor)


def test_a_mount_is_opened_by_its_id_whatever_its_name_is(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/\xff\r\xc3\xa9"
    os.mkdir(folder)
    name, here = folder.decode("utf-8", "surrogateescape"), mount_id(str(tmp_path))
    error, descriptor = guardian.open_mount(name, here)
    assert error == 0
    os.close(descriptor)
    assert guardian.open_mount(name, here + 100_000) == (guardian.HIDDEN, -1)
    assert guardian.open_mount(f"{name}/gone", here) == (errno.ENOENT, -1)


def test_what_is_no_file_or_directory_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")  # which would wait for a writer
    (tmp_path / "file").write_text("")
    here = mount_id(str(tmp_path))
    assert guardian.open_mount(str(tmp_path / "fifo"), here) == (errno.ENOTDIR, -1)
    error, descriptor = guardian.open_mount(str(tmp_path / "file"), here)  # as a container's /etc/hosts
    assert error == 0
    os.close(descriptor)


class PlayedChild:
    """Is ahead of what the guardian has read: one mount is frozen, and freezing the second waits for its thaw."""

    def __init__(self, thawed: list[int]) -> None:
        self.thawed = thawed
        self.steps, theirs = os.pipe()
        for kind, index in ((b"w", 0), (b"w", 1), (b"f", 0)):
            os.write(theirs, guardian._STEP.pack(kind, index, 0))
        os.close(theirs)

    def halt(self, heard: Callable[[bytes, int, int], object]) -> bool:
        with open(self.steps, "rb") as steps:
            for step in guardian._STEP.iter_unpack(steps.read()):
                heard(*step)
        return False

    def end(self, heard: object, patience: float | None) -> bool:
        return 1001 in self.thawed


def test_what_the_child_has_frozen_is_thawed_although_the_guardian_had_not_read_that(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    thawed = kernel({})
    monkeypatch.setattr(guardian, "FreezingChild", lambda *_: PlayedChild(thawed))
    monkeypatch.setattr(guardian, "start_hands", lambda _: [])
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        it = object.__new__(guardian.Guardian)
        it._control, it._service, it._signalled = theirs, ours.fileno(), ours.fileno()
        it._lifeline, it._libc, it._hands, it._inquest = -1, None, [], None
        it._mounts, it._frozen = {0: 1001, 1: 1002}, {}
        ours.send(guardian.THAW)
        monkeypatch.setattr(it, "_wait", lambda *_: guardian._TOLD)
        assert it._freeze(60.0, 60.0) is None
        assert thawed == [1001]
        assert it._frozen == {0: 1001, 1: 1002}  # the second may have been frozen when the child died
        assert ours.recv(100) == guardian.EVENT.pack(guardian.STUCK, 1, errno.ETIMEDOUT)


@pytest.mark.parametrize("says", ["nothing", "words", "all, and leaves"])
def test_a_guardian_that_nobody_waits_for_ends_without_a_word(says: str) -> None:
    """As one that a service manager started late."""
    asker, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reading, writing = os.pipe()
    own = os.pidfd_open(os.getpid())
    if says == "words":
        asker.send(b"5 60 90")
    elif says != "nothing":
        socket.send_fds(asker, [b"5 60 90"], [writing, own, reading])
    asker.close()
    with theirs:
        done = subprocess.run(
            [sys.executable, "-I", "-S", guardian.__file__],
            stdin=theirs,
            capture_output=True,
            timeout=60,
            check=False,
        )
    for descriptor in (reading, writing, own):
        os.close(descriptor)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
