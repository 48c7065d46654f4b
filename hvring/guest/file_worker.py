# SPDX-License-Identifier: Apache-2.0
"""The process that looks at the file systems into which a host copies files, because it may hang there.

It serves one file at a time over a SOCK_SEQPACKET socket, descriptor :data:`CONTROL`: a :data:`REQUEST` with what
belongs to it, then a :data:`REPLY` with a text; :data:`KEEP` may have none.  When the other end is closed, or the
agent is gone, it takes back what it was not told to keep and ends; nothing gets a name after that.  Beside its work it
removes what others left.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from hvring.guest import folders
from hvring.guest.leftovers import sweep, sweep_below
from hvring.guest.part import Part, Wish
from hvring.guest.room import Usage

CONTROL: Final = 3
REQUEST: Final = struct.Struct("=cQ")  #: what to do; for WRITE the offset, for PREPARE the file's size
REPLY: Final = struct.Struct(
    "=i"
)  #: errno, or 0, or one of :mod:`hvring.guest.room`; behind it a path or words
LARGEST_WRITE: Final = 64 * 1024

BEGIN: Final = b"b"  #: :data:`WISH` and the names behind it; the answer is the path
WRITE: Final = b"w"  #: the bytes
PREPARE: Final = b"p"  #: all but the name; the answer is :data:`PREPARED`
PUBLISH: Final = b"n"  #: the name; the answer is :data:`PUBLISHED`
KEEP: Final = b"k"  #: who asked has read the answer to PUBLISH: only now it is for good; 0: without an answer
ABORT: Final = b"a"
FIND: Final = (
    b"f"  #: whether the prepared file of a worker that is lost has its name: :data:`FILE` and the names
)
SWEEP: Final = (
    b"s"  #: a directory: remove what others left below it, in so many milliseconds; the answer is how many
)

PREPARED: Final = "{0:x} {1:x} {2}"  #: device and number of the file, and the SHA-256 or nothing
PUBLISHED: Final = "{0:d} {1}"  #: whether what was replaced goes with KEEP, and what is wrong nevertheless
FILE: Final = struct.Struct("=?QQ")  #: whether the name is to be on the disk, device, number

#: Flags, announced size, reserve, its percentage; mode, uid, gid, umask, quota, depth; -1: not configured.
WISH: Final = struct.Struct("=BQQd6q")
_FLAGS: Final = ("overwrite", "create_path", "may_be_file", "sync", "sha256", "allocate")

_GRACE: Final = 10.0  # seconds to take back what was begun; whoever hangs longer is ended
_SWEPT: Final = 256  # directories that are remembered
_STACK: Final = 256 * 1024


def pack(wish: Wish) -> bytes:
    """What goes with BEGIN."""
    flags = sum(getattr(wish, flag) << bit for bit, flag in enumerate(_FLAGS))
    mode, umask, quota = (-1 if number is None else number for number in (wish.mode, wish.umask, wish.quota))
    depth, counted = (-1, wish.counted) if isinstance(wish.counted, str) else (wish.counted, "")
    numbers = (mode, *(wish.owner or (-1, -1)), umask, quota, depth)
    head = WISH.pack(flags, wish.size, wish.reserve, wish.reserve_percent, *numbers)
    return head + pack_names(wish.root, counted, wish.name, *wish.below)


def pack_names(*names: str) -> bytes:
    """Names in a request, as the file system has them."""
    return b"\0".join(map(os.fsencode, names))


def _names(raw: bytes) -> list[str]:
    return [os.fsdecode(name) for name in raw.split(b"\0")]


def unpack(raw: bytes) -> Wish:
    """The wish in a BEGIN."""
    flags, size, reserve, percent, mode, uid, gid, umask, quota, depth = WISH.unpack_from(raw)
    root, counted, name, *below = _names(raw[WISH.size :])
    return Wish(
        root,
        below,
        name,
        **{flag: bool(flags >> bit & 1) for bit, flag in enumerate(_FLAGS)},
        size=size,
        mode=None if mode < 0 else mode,
        owner=None if uid < 0 else (uid, gid),
        umask=None if umask < 0 else umask,
        quota=None if quota < 0 else quota,
        counted=counted if depth < 0 else depth,
        reserve=reserve,
        reserve_percent=percent,
    )


class FileWorker:
    """One file after the other."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._buffer = bytearray(REQUEST.size + LARGEST_WRITE)
        self._part: Part | None = None
        self._sweeping: Iterator[int] | None = None
        self._swept: set[tuple[int, int]] = set()
        self._usage = Usage()

    def run(self) -> None:
        """Until the other end is closed."""
        request = memoryview(self._buffer)
        while size := self._receive():
            what, number = REQUEST.unpack_from(request)
            if what == KEEP and not number:
                self._keep()
                continue
            try:
                error, text = 0, self._do(what, number, request[REQUEST.size : size])
            except OSError as problem:
                error, text = problem.errno or errno.EIO, problem.strerror or str(problem)
            except Exception as problem:  # a fault of ours, which must not end the next copy, too
                error, text = errno.EIO, repr(problem)
            if not self._reply(error, text):
                break
        if self._part is not None:
            self._part.withdraw()
            self._part.abort()
        for _ in self._sweeping or ():
            pass

    def _receive(self) -> int:
        """Bytes of the next request, 0 at the end; goes on with the sweeping until it is there."""
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        while self._sweeping is not None and not poll.poll(0):
            if next(self._sweeping, None) is None:
                self._sweeping = None
        try:
            return self._control.recv_into(self._buffer)
        except OSError:
            return 0

    def _reply(self, error: int, text: str) -> bool:
        try:
            self._control.send(REPLY.pack(error) + os.fsencode(text))
        except OSError:
            return False
        return True

    def _keep(self) -> None:
        if self._part is not None:
            self._part.keep()
        self._end()

    def _do(self, what: bytes, number: int, rest: memoryview) -> str:
        if what == BEGIN:
            self._end()
            self._part = Part.begin(unpack(bytes(rest)), self._usage)
            self._sweep_later(self._part.folder)
            return self._part.path
        if what == ABORT:
            self._end()
            return ""
        if what == KEEP:
            self._keep()
            return ""
        if what == FIND:
            return "found" if self._find(bytes(rest)) else ""
        if what == SWEEP:
            with suppress(OSError):  # it may not, in a sandbox
                os.nice(19)  # a process of its own, which nobody waits for
            return str(sweep_below(os.fsdecode(bytes(rest)), number / 1000))
        part = self._part
        if part is None:
            raise OSError(errno.EBADF, "there is no file")
        if what == WRITE:
            part.write(number, rest)
            return ""
        try:
            if what == PREPARE:
                digest = part.prepare(number)
                status = os.fstat(part.fd)
                return PREPARED.format(status.st_dev, status.st_ino, digest)
            part.publish()
            trouble = part.settle()
            return PUBLISHED.format(part.is_exchanged, trouble)
        except OSError:
            self._end()
            raise

    def _find(self, raw: bytes) -> bool:
        """Whether a file has its name; if so, that is on the disk, too, as far as it is to be.  Raises OSError."""
        sync, device, number = FILE.unpack_from(raw)
        root, name, *below = _names(raw[FILE.size :])
        top = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for depth in range(len(below), -1, -1):
                folder = folders.open_below(top, below[:depth])
                try:
                    if depth == len(below):
                        self._sweep_later(folder)
                        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
                        if (found.st_dev, found.st_ino) != (device, number):
                            return False
                    if sync:
                        os.fsync(folder)
                finally:
                    os.close(folder)
        except FileNotFoundError:
            return False
        finally:
            os.close(top)
        return True

    def _end(self) -> None:
        part, self._part = self._part, None
        if part is not None:
            part.abort()

    def _sweep_later(self, folder: int) -> None:
        """Look for leftovers, once for each directory: a listing takes as long as there are files in it."""
        if self._sweeping is not None:
            return
        try:
            status = os.fstat(folder)
            which = (status.st_dev, status.st_ino)
            if which in self._swept:
                return
            own = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
        except OSError:
            return  # the next file will try it again
        if len(self._swept) >= _SWEPT:
            self._swept.clear()
        self._swept.add(which)
        self._sweeping = sweep(own)


def _end_with(control: socket.socket, agent: int) -> None:
    """Wait for the end of the agent, or of its interest; then allow for some time to clean up."""
    poll = select.poll()
    poll.register(control, 0)  # POLLHUP is reported anyway
    poll.register(agent, select.POLLIN)
    poll.poll()
    control.shutdown(socket.SHUT_RDWR)  # a child of the agent may have the other end, too
    time.sleep(_GRACE)
    os._exit(1)


def main() -> None:
    """See the top of this file."""
    # They are for the agent, which has something to take back first.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.closerange(CONTROL + 1, os.sysconf("SC_OPEN_MAX"))
    control = socket.socket(fileno=CONTROL)
    threading.stack_size(_STACK)
    threading.Thread(target=_end_with, args=(control, os.pidfd_open(os.getppid())), daemon=True).start()
    try:
        FileWorker(control).run()
    finally:
        os._exit(0)
