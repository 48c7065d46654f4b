# SPDX-License-Identifier: Apache-2.0
"""The processes of :mod:`hvring.guest.file_worker`, as the agent sees them: start, ask, give up, reap, never wait."""

from __future__ import annotations

import errno
import os
import select
import socket
import sys
import time
import weakref
from collections.abc import Sequence
from typing import Final

from hvring.errors import EffectError
from hvring.guest.file_worker import CONTROL, REPLY, REQUEST, SWEEP
from hvring.guest.room import BELOW_RESERVE, OVER_QUOTA
from hvring.pending import Pending, Steps, Wait, awaited
from hvring.reasons import Reason
from hvring.status import Status

#: Workers that hang in the kernel, beyond which no more are started.
MOST_STUCK: Final = 4

_SWEEPING: Final = 5.0  # seconds in which leftovers are looked for below a directory,
_PATIENCE: Final = 60.0  # and after which a process that looks for them hangs
_REFUSALS: Final = {OVER_QUOTA: Reason.OVER_QUOTA, BELOW_RESERVE: Reason.BELOW_RESERVE}
_AT_ONCE: Final = 0.001  # seconds in which an answer is waited for before it is "not yet"
_LARGEST_REPLY: Final = 8192
_END: Final = 0.2
_ROOT: Final = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_PROGRAM: Final = (
    "import sys; sys.path.insert(0, sys.argv[1]); from hvring.guest.file_worker import main; main()"
)


class Worker:
    """One process, which does one thing at a time.  It ends when this object does."""

    def __init__(self) -> None:
        """Raises EffectError if no process can be started."""
        if not sys.executable:
            raise EffectError(
                "there is no Python interpreter to start a process for files with", reason=Reason.WORKER_LOST
            )
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                try:
                    self.pid: Final = _spawn(theirs.fileno())
                except BaseException:
                    ours.close()
                    raise
        except OSError as problem:
            raise EffectError(
                f"no process for files can be started: {problem.strerror}", reason=Reason.WORKER_LOST
            ) from problem
        self._control = ours
        self._poll = select.poll()
        self._poll.register(ours, select.POLLIN)
        self._is_new = True
        self._is_busy = False
        self._close = weakref.finalize(self, _close_and_reap, ours, self.pid)

    @property
    def is_open(self) -> bool:
        """Whether it can be asked: nobody has given it up, and it has not ended."""
        if (
            self._close.alive and not self._is_busy and self._poll.poll(0)
        ):  # nothing was asked: that is its end
            self.give_up()
        return self._close.alive

    def ask(
        self,
        what: bytes,
        number: int,
        rest: bytes | bytearray | memoryview,
        timeout: float,
        *,
        is_urgent: bool = True,
    ) -> str | Pending[str]:
        """What it answers, as text.  OSError is its own; EffectError: it is gone, or did not answer in time.

        After an EffectError, and once the Pending was cancelled, it is given up, but not after one that says that
        there is no room for this host.  ``is_urgent``: an answer that comes in a moment is waited for.
        """
        until = time.monotonic() + timeout
        if self._is_busy:
            self.give_up()
            raise EffectError(
                "the process for files was asked again before it had answered", reason=Reason.WORKER_LOST
            )
        try:
            self._control.sendmsg((REQUEST.pack(what, number), rest), (), socket.MSG_DONTWAIT)
        except OSError as problem:
            self.give_up()
            raise EffectError("the process for files has ended", reason=Reason.WORKER_LOST) from problem
        self._is_busy = True
        if is_urgent and not self._is_new:  # it has yet to start, which takes its time
            self.linger()
        self._is_new = False
        return self._answer(until, timeout)

    def tell(self, what: bytes) -> None:
        """What is answered by nothing."""
        try:
            self._control.send(REQUEST.pack(what, 0), socket.MSG_DONTWAIT)
        except OSError:
            self.give_up()

    def linger(self) -> None:
        """Wait a moment for an answer, so that it need not be waited for elsewhere."""
        self._poll.poll(_AT_ONCE * 1000)

    def give_up(self) -> None:
        """Ask no more: it takes back what is not published, as soon as it can, and ends."""
        self._close.detach()
        self._control.close()

    def has_ended(self) -> bool:
        """Whether the process is gone; it is reaped with that."""
        return _reap(self.pid)

    def close(self) -> None:
        """Give it up and wait a moment for its end."""
        self._close()

    def _answer(self, until: float, timeout: float) -> str | Pending[str]:
        try:
            reply = self._control.recv(_LARGEST_REPLY, socket.MSG_DONTWAIT)
        except BlockingIOError:
            if time.monotonic() < until:
                return Pending(
                    lambda: self._answer(until, timeout), until, self._control.fileno(), self.give_up
                )
            self.give_up()
            raise EffectError(
                f"the file system does not answer, {timeout:g} s were waited", reason=Reason.FILE_SYSTEM_HANGS
            ) from None
        except OSError:
            reply = b""
        self._is_busy = False
        if len(reply) < REPLY.size:
            self.give_up()
            raise EffectError("the process for files has ended", reason=Reason.WORKER_LOST)
        (error,) = REPLY.unpack_from(reply)
        text = os.fsdecode(reply[REPLY.size :])
        if error in _REFUSALS:
            raise EffectError(text, Status.DISK_FULL, _REFUSALS[error])
        if error:
            raise OSError(error, text)
        return text


class Workers:
    """Lends workers out; keeps one that is idle, and counts those that do not end."""

    def __init__(self) -> None:
        self._idle: Worker | None = None
        self._ending: list[Worker] = []

    def take(self) -> Worker:
        """A worker for one file; EffectError if too many hang, or none can be started."""
        self._ending = [worker for worker in self._ending if not worker.has_ended()]
        worker, self._idle = self._idle, None
        if worker is not None:
            if worker.is_open:
                return worker
            self._leave(worker)
        if len(self._ending) >= MOST_STUCK:
            raise EffectError(
                f"{len(self._ending)} processes for files hang in file systems that do not answer",
                reason=Reason.FILE_SYSTEM_HANGS,
            )
        return Worker()

    def give_back(self, worker: Worker) -> None:
        """The file is done, one way or the other."""
        if not worker.is_open:
            self._leave(worker)
        elif self._idle is None:
            self._idle = worker
        else:
            worker.give_up()
            self._leave(worker)

    def sweep(self, roots: Sequence[str]) -> Steps[int]:
        """Remove what is left below these directories of files that nobody is at work on; how many.

        Raises EffectError if that cannot be done at all; a directory that cannot be looked at is left out.
        """
        if not roots:
            return 0
        worker, removed = Worker(), 0
        try:
            for root in roots:
                try:  # its answer may be here at once, or later
                    asked = worker.ask(
                        SWEEP, int(_SWEEPING * 1000), os.fsencode(root), _PATIENCE, is_urgent=False
                    )
                    removed += int((yield from awaited(asked)) if isinstance(asked, Pending) else asked)
                except OSError:
                    continue
            worker.give_up()
            yield from _end_of(worker)
        finally:
            worker.give_up()
            self._leave(worker)
        return removed

    def close(self) -> None:
        """End the one that is idle."""
        worker, self._idle = self._idle, None
        if worker is not None:
            worker.close()

    def _leave(self, worker: Worker) -> None:
        if not worker.has_ended():
            self._ending.append(worker)


def _end_of(worker: Worker) -> Steps[None]:
    """Until the process is gone, within bounds."""
    process = os.pidfd_open(worker.pid)
    try:
        until = time.monotonic() + _PATIENCE
        poll = select.poll()
        poll.register(process, select.POLLIN)
        while not poll.poll(0) and time.monotonic() < until:
            yield Wait(until, process)
    finally:
        os.close(process)


def _spawn(control: int) -> int:
    """Start the process with one descriptor of ours; nothing else of this process is in it, not even a thread."""
    utf8 = f"utf8={sys.flags.utf8_mode}"  # names of files are to mean the same
    arguments = (sys.executable, "-I", "-S", "-X", utf8, "-c", _PROGRAM, _ROOT)
    if control == CONTROL:  # a copy onto itself would stay closed for the new program
        spare = os.dup(control)
        try:
            return _spawn(spare)
        finally:
            os.close(spare)
    return os.posix_spawn(
        sys.executable,
        arguments,
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_DUP2, control, CONTROL),
        ],
        setsigmask=(),
    )


def _close_and_reap(control: socket.socket, pid: int) -> None:
    """One that does nothing ends at once; one that hangs is not waited for."""
    control.close()
    try:
        process = os.pidfd_open(pid)
    except OSError:
        return
    try:
        poll = select.poll()
        poll.register(process, select.POLLIN)
        poll.poll(_END * 1000)
    finally:
        os.close(process)
    _reap(pid)


def _reap(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except OSError as problem:
        return problem.errno == errno.ECHILD
