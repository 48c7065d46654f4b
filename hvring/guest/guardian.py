# SPDX-License-Identifier: Apache-2.0
"""The process that freezes mounts and sees to it that they are thawed again, whatever happens.

It is started before the first freeze as a program of its own (so that it shares no memory, lock or
descriptor with the service) and gets the mounts as open descriptors. From then on it looks up no path,
starts no program, writes no log and touches no page that is not in memory. It thaws when it is told to,
when the one who told it to freeze is gone, at the deadline, and on SIGTERM.

The freezing itself is done by a child of it, because FIFREEZE may wait for ever in the kernel; the
guardian then thaws the others and stays until it can thaw the last one, too. A mount that does not thaw
does not stop the others, either.

Run as ``python guardian.py CONTROL FREEZE_TIMEOUT DEADLINE MOUNT...`` (descriptors and seconds). CONTROL
is a SOCK_SEQPACKET socket: it takes FREEZE and then THAW, and gives :data:`EVENT` records. This file
imports nothing but the standard library.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import ctypes

FIFREEZE: Final = 0xC0045877
FITHAW: Final = 0xC0045878

FREEZE: Final = b"F"
THAW: Final = b"T"

#: What happened, the index of the mount that it is about (or -1), an errno (or 0).
EVENT: Final = struct.Struct("=cii")
READY: Final = b"r"  #: waiting for FREEZE; errno tells why its memory is not locked
FREEZING: Final = b"b"  #: all mounts are written out, and now they are frozen one by one
FROZEN: Final = b"f"  #: all mounts are frozen
FAILED: Final = b"e"  #: one mount could not be frozen; all are thawed
STUCK: Final = b"s"  #: freezing one mount does not end; the others are thawed
THAWED: Final = b"t"  #: as ordered, in a freeze or after it; errno is of the first mount that would not thaw
EXPIRED: Final = b"d"  #: thawed at the deadline
TERMINATED: Final = b"k"  #: thawed because of SIGTERM
STEP: Final = b"."  #: never sent: the child has done something

_MCL_CURRENT_FUTURE: Final = 3
_PR_SET_NAME: Final = 15
_STEP: Final = struct.Struct("=i")  # from the child: errno of what it did
_CHILD_GRACE: Final = 1.0
_THAW_PATIENCE: Final = 5.0  # for one mount
_RETRY: Final = 1.0
_THREAD_STACK: Final = 256 * 1024
_NOT_FROZEN: Final = (errno.EINVAL, errno.EOPNOTSUPP)  # it was not, or cannot be: which is what a thaw is for


def thaw_all(mounts: Sequence[int]) -> tuple[int, int]:
    """Thaw in reverse order and go on through errors: index and errno of the first one, or (-1, 0).

    ETIMEDOUT stands for a mount whose thaw hangs; it goes on in its thread.
    """
    first = (-1, 0)
    for index in reversed(range(len(mounts))):
        error = _thaw(mounts[index])
        if error and first == (-1, 0):
            first = (index, error)
    return first


def _thaw(mount: int) -> int:
    errors: list[int] = []
    thread = threading.Thread(target=lambda: errors.append(_ioctl(mount, FITHAW)), daemon=True)
    try:
        thread.start()
    except RuntimeError:  # no room for a thread
        error = _ioctl(mount, FITHAW)
    else:
        thread.join(_THAW_PATIENCE)
        error = errors[0] if errors else errno.ETIMEDOUT
    return 0 if error in _NOT_FROZEN else error


def _ioctl(mount: int, request: int) -> int:
    try:
        fcntl.ioctl(mount, request, 0)
    except OSError as problem:
        return problem.errno or errno.EIO
    return 0


class _FreezingChild:
    """Writes out every mount, then freezes every mount, and reports each step; a failure is the last one."""

    def __init__(self, mounts: Sequence[int], libc: ctypes.CDLL, not_for_it: Iterable[int]) -> None:
        self.done = 0  #: steps that went well: as many to write out, then as many to freeze
        self.steps, theirs = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                for fd in (self.steps, *not_for_it):
                    os.close(fd)
                self._run(mounts, theirs, libc)
            finally:
                os._exit(0)
        os.close(theirs)

    @staticmethod
    def _run(mounts: Sequence[int], steps: int, libc: ctypes.CDLL) -> None:
        libc.mlockall(_MCL_CURRENT_FUTURE)
        try:
            for mount in mounts:
                # What is written now need not be written while everything waits.
                libc.syncfs(mount)
                os.write(steps, _STEP.pack(0))
            for mount in mounts:
                error = _ioctl(mount, FIFREEZE)
                if error == errno.EBUSY:  # it is frozen already
                    error = 0
                os.write(steps, _STEP.pack(error))
                if error:
                    return
        except BrokenPipeError:
            thaw_all(mounts)  # nobody reads the steps any more: the guardian was killed

    def step(self) -> int | None:
        """Errno of the next step, or None if the child is gone. Waits for it."""
        raw = os.read(self.steps, _STEP.size)
        if len(raw) != _STEP.size:
            return None
        error = int(_STEP.unpack(raw)[0])
        self.done += error == 0
        return error

    def end(self, patience: float | None) -> bool:
        """Kill it; True once it is gone. One that waits in the kernel dies only when that wait is over."""
        os.kill(self._pid, signal.SIGKILL)
        while select.select([self.steps], [], [], patience)[0]:
            if self.step() is None:
                os.waitpid(self._pid, 0)
                return True
        return False


class Guardian:
    """One freeze, from the order to the thaw."""

    def __init__(
        self, control: socket.socket, freeze_timeout: float, deadline: float, mounts: Sequence[int]
    ) -> None:
        self._control = control
        self._freeze_timeout = freeze_timeout
        self._deadline = deadline
        self._mounts = mounts
        import ctypes  # the service imports this module too, and has no use for it

        self._libc = ctypes.CDLL(None, use_errno=True)
        self._signalled, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        # The end of the socket says that the service is gone, unless a child of it holds it open.
        self._service = os.pidfd_open(os.getppid())
        # A child must not keep the socket open: its end tells the service that the guardian is gone.
        self._own = (control.fileno(), self._signalled, wake, self._service)
        self._poller = select.poll()
        for fd in (control.fileno(), self._signalled, self._service):
            self._poller.register(fd, select.POLLIN)
        self._held_until = 0.0  # set when freezing begins

    def run(self) -> None:
        """Until the mounts are thawed, or the service is gone before it gave an order."""
        self._tell(READY, -1, self._lock_memory())
        if self._wait(None) != FREEZE:
            return
        if self._freeze():
            self._tell(FROZEN)
            why = self._wait(self._held_until)
            index, error = thaw_all(self._mounts)
            self._tell(why, index, error)
            self._go_on_thawing(error)

    def _go_on_thawing(self, error: int) -> None:
        while error not in (0, errno.ETIMEDOUT):  # a thaw that hangs is in the kernel's hands
            time.sleep(_RETRY)
            _, error = thaw_all(self._mounts)

    def _freeze(self) -> bool:
        now = time.monotonic()
        until, self._held_until = now + self._freeze_timeout, now + self._deadline
        count = len(self._mounts)
        child = _FreezingChild(self._mounts, self._libc, self._own)
        self._poller.register(child.steps, select.POLLIN)
        while child.done < 2 * count:
            if child.done == count:  # all are written out, now they are frozen
                self._held_until = time.monotonic() + self._deadline
                until = min(until, self._held_until)
                self._tell(FREEZING)
            why = self._wait(until)
            error = child.step() if why == STEP else errno.ETIMEDOUT
            if error != 0:
                self._give_up(child, why, errno.ECHILD if error is None else error)
                return False
        self._poller.unregister(child.steps)
        child.end(_CHILD_GRACE)
        return True

    def _give_up(self, child: _FreezingChild, why: bytes, error: int) -> None:
        gone = child.end(_CHILD_GRACE)
        count = len(self._mounts)
        frozen = max(0, child.done - count)  # and the next one, if it was just being frozen
        # While a freeze goes on, a thaw of the same mount would wait for it, and the freeze may itself
        # wait for one of the others (an image on a frozen file system): those come first.
        index, left = thaw_all(self._mounts[: frozen + 1] if gone else self._mounts[:frozen])
        if not gone:
            why = STUCK
        elif why in (STEP, EXPIRED):
            why = FAILED
        if why in (STUCK, FAILED):
            self._tell(why, child.done % count, error)
        else:
            self._tell(why, index, left)
        if not gone:
            child.end(None)
            _, left = thaw_all(self._mounts[: frozen + 1])
        self._go_on_thawing(left)

    def _wait(self, until: float | None) -> bytes:
        """What comes first: FREEZE, THAWED (ordered, or the service is gone), TERMINATED, EXPIRED or STEP."""
        while True:
            left = None if until is None else max(0.0, until - time.monotonic()) * 1000
            ready = [fd for fd, _ in self._poller.poll(left)]
            if self._signalled in ready:
                return TERMINATED
            if self._control.fileno() in ready:
                return FREEZE if self._receive() == FREEZE else THAWED
            if self._service in ready:
                return THAWED
            if ready:
                return STEP
            if until is not None and time.monotonic() >= until:
                return EXPIRED

    def _receive(self) -> bytes:
        try:
            return self._control.recv(16)
        except OSError:
            return b""

    def _tell(self, what: bytes, index: int = -1, error: int = 0) -> None:
        try:
            self._control.send(EVENT.pack(what, index, error), socket.MSG_DONTWAIT)
        except OSError:
            pass  # nobody is there to be told; what was to be done is done

    def _lock_memory(self) -> int:
        """Keep every page in memory and out of the OOM killer's sight; errno if the first is refused."""
        try:
            with open("/proc/self/oom_score_adj", "w", encoding="utf-8") as score:
                score.write("-1000")
        except OSError:
            pass
        self._libc.prctl(_PR_SET_NAME, b"hvring-guardian", 0, 0, 0)
        import ctypes

        return ctypes.get_errno() if self._libc.mlockall(_MCL_CURRENT_FUTURE) else 0


def main(arguments: Sequence[str]) -> None:
    """See the top of this file."""
    control = socket.socket(fileno=int(arguments[0]))
    mounts = [int(argument) for argument in arguments[3:]]
    threading.stack_size(_THREAD_STACK)  # the stacks are locked in memory, too
    try:
        Guardian(control, float(arguments[1]), float(arguments[2]), mounts).run()
    except BaseException:
        thaw_all(mounts)
        raise


if __name__ == "__main__":
    main(sys.argv[1:])
