# SPDX-License-Identifier: Apache-2.0
"""One freeze from the order to the thaw, as its owner sees it: the open mounts, the guardian and the socket to it.

Nothing here waits. What takes its time is a generator that yields whenever it has to: a descriptor that gets readable,
and a time of the monotonic clock after which to go on anyway.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
import time
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Final, TypeVar

from hvring.errors import EffectError
from hvring.guest import guardian
from hvring.guest.mounts import Filesystem, Mount

if TYPE_CHECKING:
    from subprocess import Popen

_Result = TypeVar("_Result")
Steps = Generator[tuple[int, float], None, _Result]

_GUARDIAN_START: Final = 15.0
_SLACK: Final = 10.0  # seconds on top of what the guardian allows itself
_ON_THE_WAY: Final = (guardian.READY, guardian.FREEZING, guardian.FROZEN)


class Hold:
    """Once :meth:`freeze` was begun, :meth:`close` is due, whatever comes between."""

    def __init__(self, filesystems: Sequence[Filesystem], freeze_timeout: float, deadline: float) -> None:
        self.is_stuck = False  #: a freeze or thaw hangs in the kernel, and the guardian with it
        self.is_closed = False
        self._filesystems = filesystems
        self._freeze_timeout = freeze_timeout
        self._deadline = deadline
        self._mounts: list[int] = []
        self._control: socket.socket | None = None
        self._process: Popen[bytes] | None = None
        self._is_ordered = False  # the guardian was told to freeze
        self._is_begun = False  # mounts are being frozen, and not known to be thawed
        self._is_done = False  # all of them are frozen, and the owner was told
        self._early: bytes | None = None  # the event by which the guardian let go after that

    def freeze(self) -> Steps[None]:
        """Start the guardian and let it freeze; on EffectError all is thawed."""
        for filesystem in self._filesystems:
            self._mounts.append(_open(filesystem))
        self._start_guardian()
        what, index, error = yield from self._event(time.monotonic() + _GUARDIAN_START)
        if what != guardian.READY:
            raise EffectError("the guardian does not start")
        if error:
            import logging

            logging.getLogger("hvring.guest").warning(
                "the guardian's memory is not locked: %s", os.strerror(error)
            )
        self._is_ordered = True
        self._order(guardian.FREEZE)
        give_up_at = time.monotonic() + self._freeze_timeout + _SLACK
        what, index, error = yield from self._event(give_up_at)
        if what == guardian.FREEZING:
            self._is_begun = True
            what, index, error = yield from self._event(give_up_at)
        if what == guardian.FROZEN:
            self._is_begun = self._is_done = True
            return
        if what == b"":
            # Killed, perhaps in the middle: its child thaws for itself, here is for the rest.
            guardian.thaw_all(self._mounts)
        self._is_begun = False
        if what == b"":
            raise EffectError("the guardian was killed while it froze")
        if what == guardian.STUCK:
            raise self._hangs(index)
        if what == guardian.FAILED and index < len(self._filesystems):
            raise EffectError(f"cannot freeze {self._filesystems[index]}: {_explain(error)}")
        raise EffectError("the freeze was broken off")

    def holds(self) -> bool:
        """Whether something is frozen, or about to be: the guardian has not let go of it, or is dead and cannot."""
        if self._is_done and self._early is None and self._control is not None:
            try:
                self._early = self._control.recv(guardian.EVENT.size, socket.MSG_DONTWAIT)[:1] or None
            except OSError:
                pass
        return self._is_begun and self._early is None

    def thaw(self, timeout: float) -> Steps[None]:
        """Thaw, by the guardian or in its place; breaks off a freeze that is under way.

        EffectError if a complete freeze had ended before, or if something would not thaw."""
        if self._is_done and not self.holds():
            why = "at its deadline" if self._early == guardian.EXPIRED else "because of a signal"
            raise EffectError(f"the guardian thawed everything before it was asked to, {why}")
        if self._control is None:
            return  # broken off before anything began
        self._order(guardian.THAW)
        what = guardian.READY
        give_up_at = time.monotonic() + timeout
        while what in _ON_THE_WAY:  # of the freeze that is broken off
            what, index, error = yield from self._event(give_up_at)
        if what == b"":
            index, error = guardian.thaw_all(self._mounts) if self._is_ordered else (-1, 0)
        elif what == guardian.STUCK:
            raise self._hangs(index)
        elif what != guardian.THAWED:
            if self._is_done:
                raise EffectError("the guardian thawed everything before it was asked to")
            error = 0  # of the freeze, and what was frozen is thawed
        if error:
            self.is_stuck = True  # the guardian goes on trying
            raise EffectError(f"cannot thaw {self._filesystems[index]}: {os.strerror(error)}")

    def close(self) -> Popen[bytes] | None:
        """Let go of everything: a guardian that still holds something thaws it, and then ends. Returns it."""
        self.is_closed = True
        self._is_begun = False
        if self._control is not None:
            try:
                self._control.shutdown(socket.SHUT_RDWR)  # a child of this process may hold it open
            except OSError:
                pass
            self._control.close()
        for fd in self._mounts:
            os.close(fd)
        self._mounts.clear()
        return self._process

    def _start_guardian(self) -> None:
        import subprocess

        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            timing = (str(self._freeze_timeout), str(self._deadline))
            mounts = map(str, self._mounts)
            try:
                self._process = subprocess.Popen(
                    # -I -S: nothing from the environment, the user's site or this directory
                    [sys.executable, "-I", "-S", guardian.__file__, str(theirs.fileno()), *timing, *mounts],
                    pass_fds=(theirs.fileno(), *self._mounts),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    start_new_session=True,
                )
            except OSError as problem:
                raise EffectError(f"cannot start the guardian: {problem}") from problem

    def _order(self, order: bytes) -> None:
        assert self._control is not None
        try:
            self._control.send(order)
        except OSError:
            pass  # it is gone, but may have left its last event

    def _event(self, give_up_at: float) -> Steps[tuple[bytes, int, int]]:
        """The next event, named b"" if the guardian is gone. EffectError if none comes in time."""
        assert self._control is not None
        while True:
            try:
                event = self._control.recv(guardian.EVENT.size, socket.MSG_DONTWAIT)
                break
            except BlockingIOError:
                if time.monotonic() >= give_up_at:
                    raise EffectError("the guardian does not answer") from None
                yield self._control.fileno(), give_up_at
            except OSError:
                event = b""
                break
        if len(event) != guardian.EVENT.size:
            return b"", -1, 0
        what, index, error = guardian.EVENT.unpack(event)
        return what, index, error

    def _hangs(self, index: int) -> EffectError:
        self.is_stuck = True
        return EffectError(f"freezing {self._filesystems[index]} does not end; the others are thawed")


def _open(filesystem: Filesystem) -> int:
    """A descriptor on the file system by one of its mounts; EffectError tells why there is none."""
    problems: list[str] = []
    for mount in filesystem.mounts:
        try:
            fd = os.open(mount.target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as problem:
            problems.append(f"{mount.target}: {problem.strerror}")
            continue
        if _is_on(fd, mount):
            return fd
        os.close(fd)
        problems.append(f"{mount.target}: hidden under another mount")
    raise EffectError(f"cannot open {filesystem}: {'; '.join(problems)}")


def _is_on(fd: int, mount: Mount) -> bool:
    with open(f"/proc/self/fdinfo/{fd}", encoding="utf-8") as facts:
        return any(line.split() == ["mnt_id:", str(mount.id)] for line in facts)


def _explain(error: int) -> str:
    if error == errno.EOPNOTSUPP:
        return "this kind of file system cannot be frozen; exclude it"
    if error == errno.ETIMEDOUT:
        return "it took too long"
    if error == errno.ECHILD:
        return "the freezing process was killed"
    return os.strerror(error)
