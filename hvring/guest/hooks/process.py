# SPDX-License-Identifier: Apache-2.0
"""One process of a hook: started with its end already known to somebody else, read, and ended in any case."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NoReturn

HELD: Final = b"held"
TERM_GRACE: Final = 2.0  # seconds between SIGTERM and SIGKILL
KILL_GRACE: Final = 5.0  # seconds until one that was killed is left to the kernel
_WORDS: Final = 2000  # bytes of what it said, the last ones
_PIECE: Final = 65536
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ)

Announce = Callable[[Sequence[int]], object]
"""Called in the child, just before it becomes the hook: with its pidfd and the ends of its pipes."""


class HookProcess:
    """``pidfd`` gets readable at its end; its output is kept short, and read by :meth:`read`."""

    def __init__(self, pid: int, pidfd: int, stdin: int, stdout: int, stderr: int, failed: int = -1) -> None:
        """``pid``: 0 for one that is not a child of this process; ``failed``: tells if there is no such program."""
        self.pid = pid
        self.pidfd = pidfd
        self.begun = time.monotonic()
        self.has_said_held = False
        self.error = 0  #: of exec: then it never was a hook
        self._stdin = stdin
        self._pipes: dict[int, bytearray] = {stdout: bytearray(), stderr: bytearray()}
        self._stdout, self._stderr, self._failed = stdout, stderr, failed
        self._closed: dict[int, bytearray] = {}
        self._line = bytearray()  # of its standard output, not complete yet
        self._is_after_long_line = False

    @classmethod
    def start(
        cls, argv: Sequence[str], environment: Mapping[str, str], announce: Announce, *, listens: bool
    ) -> HookProcess:
        """``listens``: it is told its end on its standard input, which else is at its end from the beginning.

        Raises OSError when there is no room for a process."""
        opened: list[int] = []
        try:
            for _ in range(4):
                opened += os.pipe2(os.O_CLOEXEC)
            child_in, stdin, stdout, child_out, stderr, child_err, failed, child_failed = opened
            pid = os.fork()
        except OSError:
            for descriptor in opened:
                os.close(descriptor)
            raise
        if pid == 0:
            try:
                if not listens:
                    os.close(stdin)
                    stdin = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
                _become(
                    argv, environment, (child_in, child_out, child_err), announce, (stdin, stdout, stderr)
                )
            except OSError as error:
                os.write(child_failed, str(error.errno or 5).encode())
            finally:
                os._exit(127)
        for descriptor in (child_in, child_out, child_err, child_failed):
            os.close(descriptor)
        for descriptor in (stdin, stdout, stderr, failed):
            os.set_blocking(descriptor, False)
        process = cls(pid, os.pidfd_open(pid), stdin, stdout, stderr, failed)
        if not listens:
            process._close_stdin()
        return process

    # ------------------------------------------------------------------------- what it says

    def descriptors(self) -> list[int]:
        """Readable when :meth:`read` or :meth:`has_ended` has something new."""
        return [fd for fd in (self.pidfd, self._failed, *self._pipes) if fd >= 0]

    def read(self, ready: Iterable[int]) -> None:
        """Take what came on those of its descriptors."""
        for descriptor in ready:
            if descriptor == self._failed:
                said = _read(descriptor)
                if said:
                    self.error = int(said)
                os.close(descriptor)
                self._failed = -1
            elif descriptor in self._pipes:
                piece = _read(descriptor)
                if piece is None:
                    continue
                if not piece:  # it closed this one, which is its own affair
                    self._last_words(descriptor)
                    continue
                if descriptor == self._stdout:
                    self._look_for_held(piece)
                kept = self._pipes[descriptor]
                kept += piece
                del kept[:-_WORDS]

    def words(self) -> str:
        """The last line that it said on its standard error, else on its output."""
        for said in (self._said(self._stderr), self._said(self._stdout)):
            lines = [line for line in said.splitlines() if line.strip() and line.strip() != HELD]
            if lines:
                return lines[-1].strip().decode(errors="replace")[-300:]
        return ""

    def _said(self, descriptor: int) -> bytes:
        return bytes(self._pipes.get(descriptor, self._closed.get(descriptor, b"")))

    def _last_words(self, descriptor: int) -> None:
        self._closed[descriptor] = self._pipes.pop(descriptor)
        os.close(descriptor)

    def _look_for_held(self, piece: bytes) -> None:
        self._line += piece
        *lines, rest = self._line.split(b"\n")
        for line in lines:
            self.has_said_held |= line.strip() == HELD and not self._is_after_long_line
            self._is_after_long_line = False
        if len(rest) > len(HELD) + 10:  # whatever that is, it is not the word
            rest, self._is_after_long_line = bytearray(), True
        self._line = rest

    # ------------------------------------------------------------------------- its end

    def tell(self, word: str) -> bool:
        """One line and then end-of-file; False: it is gone, or does not take it."""
        try:
            taken = os.write(self._stdin, f"{word}\n".encode()) > 0
        except OSError:
            taken = False
        self._close_stdin()
        return taken

    def has_ended(self) -> bool:
        """Whether it is gone.  Does not wait."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def signal(self, number: int) -> None:
        """To it and what it started."""
        try:
            pid = self.pid or _pid_of(self.pidfd)
            if pid > 0 and not self.has_ended():  # its number cannot be another's before it is waited for
                os.killpg(pid, number)
        except ProcessLookupError:  # it has no group of its own yet
            _signal(self.pidfd, number)
        except PermissionError:
            pass

    def close(self) -> int | None:
        """Once it has ended, or nobody waits any more: its exit status, negative for a signal; None: unknown."""
        self.read(list(self._pipes))
        self._close_stdin()
        for descriptor in list(self._pipes):
            self._last_words(descriptor)
        if self._failed >= 0:
            os.close(self._failed)
            self._failed = -1
        os.close(self.pidfd)
        if not self.pid:
            return None
        try:
            found, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            return None
        return os.waitstatus_to_exitcode(status) if found else None

    def _close_stdin(self) -> None:
        if self._stdin >= 0:
            os.close(self._stdin)
            self._stdin = -1


def _read(descriptor: int) -> bytes | None:
    try:
        return os.read(descriptor, _PIECE)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def _signal(pidfd: int, number: int) -> None:
    try:
        signal.pidfd_send_signal(pidfd, number)
    except OSError:
        pass


def _pid_of(pidfd: int) -> int:
    with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as facts:
        return max([0, *(int(line.split()[1]) for line in facts if line.startswith("Pid:"))])


def _become(
    argv: Sequence[str],
    environment: Mapping[str, str],
    standard: tuple[int, int, int],
    announce: Announce,
    others: Sequence[int],
) -> NoReturn:
    os.setsid()
    signal.set_wakeup_fd(-1)
    for number in _SIGNALS:  # those that Python or this program took
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.umask(0o022)
    os.chdir("/")
    for at, descriptor in enumerate(standard):
        os.dup2(descriptor, at)
    announce([os.pidfd_open(os.getpid()), *others])
    os.execve(argv[0], list(argv), environment)
