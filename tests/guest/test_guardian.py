# SPDX-License-Identifier: Apache-2.0
"""The thaw itself, on descriptors that are none: the kernel's side is played by the test."""

from __future__ import annotations

import errno
import fcntl
import threading
from collections.abc import Callable

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


def test_mounts_thaw_in_reverse_order(kernel: Kernel) -> None:
    thawed = kernel({})
    assert guardian.thaw_all(MOUNTS) == (-1, 0)
    assert thawed == [1003, 1002, 1001]


@pytest.mark.parametrize("error", [errno.EINVAL, errno.EOPNOTSUPP])
def test_one_that_was_not_frozen_is_no_error(kernel: Kernel, error: int) -> None:
    thawed = kernel(dict.fromkeys(MOUNTS, error))
    assert guardian.thaw_all(MOUNTS) == (-1, 0)
    assert len(thawed) == 3


def test_one_that_cannot_be_thawed_is_told_and_does_not_stop_the_others(kernel: Kernel) -> None:
    thawed = kernel({1002: errno.EIO, 1001: errno.EPERM})
    assert guardian.thaw_all(MOUNTS) == (1, errno.EIO)
    assert thawed == [1003, 1002, 1001]


def test_one_that_hangs_does_not_stop_the_others(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guardian, "_THAW_PATIENCE", 0.05)
    hanging = threading.Event()
    thawed = kernel({1003: hanging})
    try:
        assert guardian.thaw_all(MOUNTS) == (2, errno.ETIMEDOUT)
        assert thawed == [1003, 1002, 1001]
    finally:
        hanging.set()


def test_without_room_for_a_thread_the_thaw_still_happens(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    thawed = kernel({1002: errno.EIO})
    assert guardian.thaw_all(MOUNTS) == (1, errno.EIO)
    assert thawed == [1003, 1002, 1001]
