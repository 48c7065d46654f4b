# SPDX-License-Identifier: Apache-2.0
"""The memory of another process: what it has faulted in, what of it is elsewhere, and how to send it there."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
from pathlib import Path

import pytest
from writers import wait_for

_PROCESS_MADVISE = 440
_MADV_PAGEOUT = 21
_PTRACE_SEIZE, _PTRACE_CONT, _PTRACE_DETACH = 0x4206, 7, 17
_PTRACE_O_TRACEEXIT = 1 << 6
_PTRACE_EVENT_EXIT = 6
_WALL = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)


class _Range(ctypes.Structure):
    _fields_ = (("start", ctypes.c_void_p), ("length", ctypes.c_size_t))


def faults(pid: int) -> tuple[int, int]:
    """Page faults of all its threads so far: those without a disk, those with one."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[7]), int(fields[9])


def kilobytes(pid: int, name: str) -> int:
    """A line of its status, as VmLck or VmSwap."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def page_out(pid: int) -> int:
    """Ask the kernel to take everything of it out of memory; how many mappings refused.  Skips where nobody may ask."""
    process = os.pidfd_open(pid)
    refused = 0
    try:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            bounds, rights, *_ = line.split()
            if not rights.startswith("r") or line.endswith(
                ("[vvar]", "[vdso]", "[vsyscall]", "[vvar_vclock]")
            ):
                continue
            start, end = (int(word, 16) for word in bounds.split("-"))
            one = _Range(start, end - start)
            if _libc.syscall(_PROCESS_MADVISE, process, ctypes.byref(one), 1, _MADV_PAGEOUT, 0) < 0:
                number = ctypes.get_errno()
                if number in (errno.ENOSYS, errno.EPERM):
                    pytest.skip(f"nobody may page out another process here: {os.strerror(number)}")
                refused += 1
    finally:
        os.close(process)
    return refused


class LastMoment:
    """Holds a process at its very end, when nothing of it is gone yet; for one thread."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._is_over = False
        if _libc.ptrace(_PTRACE_SEIZE, pid, None, ctypes.c_void_p(_PTRACE_O_TRACEEXIT)) < 0:
            pytest.skip(f"nobody may trace here: {os.strerror(ctypes.get_errno())}")

    def look(self) -> tuple[int, int] | None:
        """The faults of all its life, once it ends, and lets it go then; None: it has not.  Does not wait."""
        while True:
            pid, status = os.waitpid(self.pid, _WALL | os.WNOHANG)
            if not pid:
                return None
            if not os.WIFSTOPPED(status):
                self._is_over = True
                raise AssertionError("it ended without a last moment")
            if status >> 16 == _PTRACE_EVENT_EXIT:
                found = faults(self.pid)
                self._is_over = True
                _libc.ptrace(_PTRACE_DETACH, self.pid, None, None)  # its parent is to reap it
                return found
            number = os.WSTOPSIG(status)
            passed_on = 0 if number == signal.SIGTRAP else number
            _libc.ptrace(_PTRACE_CONT, self.pid, None, ctypes.c_void_p(passed_on))

    def close(self) -> None:
        """Whatever happened: nobody is held at his end, and with him what he has open."""
        if not self._is_over:
            os.kill(self.pid, signal.SIGKILL)
            wait_for(lambda: self.look() is not None)
