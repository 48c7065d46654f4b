# SPDX-License-Identifier: Apache-2.0
"""The process that looks at the file systems into which a host copies files, because it may hang there.

It serves one file at a time over a SOCK_SEQPACKET socket, descriptor :data:`CONTROL`: a :data:`REQUEST` with what
belongs to it, then a :data:`REPLY` with a text.  When the other end is closed, or the agent is gone, it takes back
what has no name yet and ends; nothing gets a name after that.  Beside its work it removes what others left.
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
from typing import Final

from hvring.guest.leftovers import sweep
from hvring.guest.part import Part, Wish

CONTROL: Final = 3
REQUEST: Final = struct.Struct("=cQ")  #: what to do; for WRITE the offset, for PREPARE the file's size
REPLY: Final = struct.Struct("=i")  #: errno, or 0; behind it a path or an explanation
LARGEST_WRITE: Final = 64 * 1024

BEGIN: Final = b"b"  #: :data:`WISH` and the names behind it; the answer is the path
WRITE: Final = b"w"  #: the bytes
PREPARE: Final = b"p"  #: all but the name; the answer is the SHA-256, or empty
PUBLISH: Final = b"n"  #: the name; the answer is what is wrong nevertheless, or empty
ABORT: Final = b"a"

#: Flags, announced size, mode, uid, gid; -1: not configured.
WISH: Final = struct.Struct("=BQqqq")
_FLAGS: Final = ("overwrite", "create_path", "may_be_file", "sync", "sha256")

_GRACE: Final = 10.0  # seconds to take back what was begun; whoever hangs longer is ended
_SWEPT: Final = 256  # directories that are remembered
_STACK: Final = 256 * 1024


def pack(wish: Wish) -> bytes:
    """What goes with BEGIN."""
    flags = sum(getattr(wish, flag) << bit for bit, flag in enumerate(_FLAGS))
    mode = -1 if wish.mode is None else wish.mode
    head = WISH.pack(flags, wish.size, mode, *(wish.owner or (-1, -1)))
    return head + b"\0".join(os.fsencode(name) for name in (wish.root, wish.name, *wish.below))


def unpack(raw: bytes) -> Wish:
    """The wish in a BEGIN."""
    flags, size, mode, uid, gid = WISH.unpack_from(raw)
    root, name, *below = (os.fsdecode(part) for part in raw[WISH.size :].split(b"\0"))
    return Wish(
        root,
        below,
        name,
        **{flag: bool(flags >> bit & 1) for bit, flag in enumerate(_FLAGS)},
        size=size,
        mode=None if mode < 0 else mode,
        owner=None if uid < 0 else (uid, gid),
    )


class FileWorker:
    """One file after the other."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._buffer = bytearray(REQUEST.size + LARGEST_WRITE)
        self._part: Part | None = None
        self._sweeping: Iterator[None] | None = None
        self._swept: set[tuple[int, int]] = set()

    def run(self) -> None:
        """Until the other end is closed."""
        request = memoryview(self._buffer)
        while size := self._receive():
            what, number = REQUEST.unpack_from(request)
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
            if next(self._sweeping, self) is self:
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
        if self._part is not None and self._part.is_named:  # and they know it
            self._end()
        return True

    def _do(self, what: bytes, number: int, rest: memoryview) -> str:
        if what == BEGIN:
            self._end()
            self._part = Part.begin(unpack(bytes(rest)))
            self._sweep_later(self._part.folder)
            return self._part.path
        if what == ABORT:
            self._end()
            return ""
        part = self._part
        if part is None:
            raise OSError(errno.EBADF, "there is no file")
        if what == WRITE:
            part.write(number, rest)
            return ""
        try:
            if what == PREPARE:
                return part.prepare(number)
            part.publish()
            return part.settle()
        except OSError:
            self._end()
            raise

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
