# SPDX-License-Identifier: Apache-2.0
"""Programs that run beside the agent: started without a shell, watched by a descriptor, never waited for."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from typing import Final

from hvring.errors import EffectError
from hvring.pending import Steps, Wait
from hvring.reasons import Reason

PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin"
_KILLED_WITHIN: Final = 1.0  # seconds that a command has to end after SIGKILL
_LAST_WORDS: Final = 1000  # bytes of what a command said
_LOOK_EVERY: Final = 0.1  # seconds; only where the kernel gives no descriptor of a process


class Command:
    """A program that runs by itself; ``descriptor`` gets readable when it ends, -1 where the kernel has none such.

    OSError if it could not be started.  ``left`` gets its number if it is closed before its end was seen.  ``keeps``:
    what it says on its standard output is kept, too; ``stdin``: a descriptor in place of nothing.
    """

    def __init__(
        self,
        name: str,
        path: str,
        argv: Sequence[bytes] | Sequence[str],
        left: list[int],
        *,
        environment: Mapping[str, str] | None = None,
        keeps: bool = False,
        stdin: int = -1,
    ) -> None:
        self.name: Final = name
        self._left = left
        self._ended = False
        # A file in memory and not a pipe, which somebody would have to empty.
        self._said = os.memfd_create("hvring-command", os.MFD_CLOEXEC)
        try:
            actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = [
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0),
                (os.POSIX_SPAWN_DUP2, self._said if keeps else 0, 1),
                (os.POSIX_SPAWN_DUP2, self._said, 2),
            ]
            if stdin >= 0:
                actions.append((os.POSIX_SPAWN_DUP2, stdin, 0))
            self.pid: Final = os.posix_spawn(
                path,
                [os.fsencode(word) for word in argv],
                os.environ if environment is None else environment,
                file_actions=actions,
                setsigdef=[signal.SIGPIPE],
                setsigmask=[],
                setpgroup=0,
            )
        except BaseException:
            os.close(self._said)
            raise
        try:
            self.descriptor = os.pidfd_open(self.pid)
        except OSError:
            self.descriptor = -1

    def failure(self) -> str | None:
        """None while it runs, "" if it did what it was told, else how it ended and its last words."""
        code = wait_for(self.pid)
        if code is None:
            return None
        self._ended = True
        if code == 0:
            return ""
        how = f"exit status {code}" if code > 0 else f"killed by signal {-code}"
        return f"{how} {self.said()}".rstrip()

    def said(self) -> str:
        """The last of what it said until now."""
        start = max(0, os.fstat(self._said).st_size - _LAST_WORDS)
        return os.pread(self._said, _LAST_WORDS, start).decode(errors="replace").strip()

    def kill(self) -> None:
        """It has had its time, and what it started, too; its end still has to be waited for."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:  # it ended by itself, and somebody else waited for it
            pass

    def until_end(self, end: float) -> Steps[str | None]:
        """What :meth:`failure` says when it has ended; None: it had to be killed at ``end``."""
        while (failure := self.failure()) is None:
            if time.monotonic() >= end:
                self.kill()
                yield from self._until(time.monotonic() + _KILLED_WITHIN)
                return None
            yield self._wait(end)
        return failure

    def close(self) -> None:
        """Forget it, but do not end it: what it began cannot be taken back. May be called twice."""
        if self._said < 0:
            return
        if not self._ended:
            self._left.append(self.pid)
        for descriptor in (self._said, self.descriptor):
            if descriptor >= 0:
                os.close(descriptor)
        self._said = self.descriptor = -1

    def _until(self, end: float) -> Steps[None]:
        while self.failure() is None and time.monotonic() < end:
            yield self._wait(end)

    def _wait(self, end: float) -> Wait:
        at = end if self.descriptor >= 0 else min(end, time.monotonic() + _LOOK_EVERY)
        return Wait(at, self.descriptor)


def run(
    words: Sequence[str],
    end: float,
    left: list[int],
    *,
    argv: Sequence[bytes] | None = None,
    environment: Mapping[str, str] | None = None,
    stays: bool = True,
) -> Steps[None]:
    """A program and its words, until it has ended well.

    Raises EffectError with its name and last words if it has not, or not at ``end``: NO_WAY where there is no such
    program, else COMMAND_FAILED.  ``argv``: what it is really given.  ``stays``: it goes on when nobody waits any more.
    """
    name, path = words[0], find(words[0])
    if path is None:
        raise EffectError(f"{name}: not found", reason=Reason.NO_WAY)
    try:
        running = Command(name, path, words if argv is None else argv, left, environment=environment)
    except (OSError, ValueError) as error:  # also of a word with a NUL in it
        why = getattr(error, "strerror", None) or error
        raise EffectError(f"{name}: {why}", reason=Reason.COMMAND_FAILED) from error
    try:
        failure = yield from running.until_end(end)
    except GeneratorExit:
        if not stays:
            running.kill()
        raise
    finally:
        running.close()
    if failure is None:
        raise EffectError(f"{name}: did not end in time", reason=Reason.COMMAND_FAILED)
    if failure:
        raise EffectError(f"{name}: {failure}", reason=Reason.COMMAND_FAILED)


def wait_for(pid: int) -> int | None:
    """The exit status, negative for a signal; None while it runs. Never blocks."""
    try:
        found, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:  # somebody else asked first, so nobody knows how it ended
        return 0
    return os.waitstatus_to_exitcode(status) if found else None


def find(command: str) -> str | None:
    """The program of this name, as a shell would find it."""
    if "/" in command:
        paths = [command]
    else:
        paths = [os.path.join(where, command) for where in os.environ.get("PATH", PATH).split(":") if where]
    return next((path for path in paths if os.path.isfile(path) and os.access(path, os.X_OK)), None)
