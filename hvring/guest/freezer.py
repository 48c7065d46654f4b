# SPDX-License-Identifier: Apache-2.0
"""Freezing the file systems of this machine for a backup (PROTOCOL §4.5.3).

Between freeze() and thaw() nothing here logs, starts a program or looks up a path: each of these may
wait for a frozen file system. What must not fail is left to the process of :mod:`hvring.guest.guardian`.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from hvring.errors import EffectError
from hvring.guest import guardian
from hvring.guest.mounts import Filesystem, Mount, Plan, read_plan

if TYPE_CHECKING:
    from subprocess import Popen

_CAP_SYS_ADMIN: Final = 21
_GUARDIAN_START: Final = 15.0
_GUARDIAN_END: Final = 5.0
_SLACK: Final = 10.0  # seconds on top of what the guardian allows itself


class Freezer(Protocol):
    """What the backup service needs."""

    @property
    def ready(self) -> bool:
        """Whether a freeze can be expected to work now."""
        ...

    @property
    def frozen(self) -> bool:
        """Whether the file systems are frozen now."""
        ...

    def freeze(self) -> None:
        """Freeze all or none; EffectError on failure, with everything thawed again."""
        ...

    def thaw(self) -> None:
        """Thaw everything; EffectError if something could not be thawed, or was thawed too early."""
        ...


class SystemFreezer:
    """Really freezes. For one thread; freeze() blocks while the file systems are written out."""

    def __init__(
        self,
        plan: Callable[[], Plan] = read_plan,
        *,
        freeze_timeout: float = 60.0,
        deadline: float = 90.0,
        thaw_timeout: float = 30.0,
    ) -> None:
        """All in seconds: ``freeze_timeout`` is for writing out and freezing; the guardian thaws by itself
        ``deadline`` after the first freeze; thaw() waits for it no longer than ``thaw_timeout``."""
        self._plan = plan
        self._freeze_timeout = freeze_timeout
        self._deadline = deadline
        self._thaw_timeout = thaw_timeout
        self._hold: _Hold | None = None
        self._stuck: Popen[bytes] | None = None

    def plan(self) -> Plan:
        """What would be frozen now, in order, and what would not and why. Raises EffectError."""
        return self._plan()

    @property
    def ready(self) -> bool:
        """Whether this process may freeze and can start a guardian, and no earlier freeze hangs."""
        return self.obstacle() is None

    def obstacle(self) -> str | None:
        """Why a freeze cannot work, or None."""
        if self._stuck is not None and self._stuck.poll() is None:
            return "an earlier freeze still hangs in the kernel"
        if not _may_freeze():
            return "freezing needs root (CAP_SYS_ADMIN)"
        if not sys.executable or not os.path.isfile(guardian.__file__):
            return "there is no Python interpreter to start the guardian with"
        return None

    @property
    def frozen(self) -> bool:
        """Whether the file systems are frozen now; the guardian may have thawed them by itself."""
        return self._hold is not None and self._hold.holds()

    def freeze(self) -> None:
        """Freeze all or none; EffectError names the file system at fault. Does nothing while frozen."""
        if self.frozen:
            return
        self._release()
        obstacle = self.obstacle()
        if obstacle is not None:
            raise EffectError(obstacle)
        hold = _Hold(self.plan().freeze, self._freeze_timeout, self._deadline)
        try:
            hold.freeze()
        except BaseException:
            self._stuck = hold.close()
            raise
        self._hold = hold

    def thaw(self) -> None:
        """Thaw everything; does nothing if nothing was frozen.

        EffectError if a file system would not thaw, or if the guardian thawed them earlier."""
        if self._hold is None:
            return
        try:
            self._hold.thaw(self._thaw_timeout)
        finally:
            self._release()

    def _release(self) -> None:
        if self._hold is not None:
            self._stuck = self._hold.close()
            self._hold = None


#: What a rehearsal records at most: a host could go on for ever.
_REMEMBERED: Final = 1000


class RehearsedFreezer:
    """Keeps the same state and freezes nothing; ``events`` records what would have been done lately."""

    def __init__(self, plan: Callable[[], Plan] = read_plan) -> None:
        self._plan = plan
        self._frozen = False
        self.events: list[str] = []

    def plan(self) -> Plan:
        """What would be frozen now."""
        return self._plan()

    @property
    def ready(self) -> bool:
        """A rehearsal is always possible."""
        return True

    @property
    def frozen(self) -> bool:
        """Whether a freeze is being rehearsed."""
        return self._frozen

    def freeze(self) -> None:
        """Record what would be frozen; raises EffectError if that cannot be found out."""
        if not self._frozen:
            targets = ", ".join(filesystem.target for filesystem in self.plan().freeze)
            self._rehearse(f"freeze {targets or 'nothing'}")
            self._frozen = True

    def thaw(self) -> None:
        """Record the thaw."""
        if self._frozen:
            self._frozen = False
            self._rehearse("thaw")

    def _rehearse(self, event: str) -> None:
        import logging

        self.events.append(event)
        del self.events[:-_REMEMBERED]
        logging.getLogger("hvring.guest").info("rehearsal: would %s", event)


class _Hold:
    """One freeze: the open mounts, the guardian and the socket to it."""

    def __init__(self, filesystems: Sequence[Filesystem], freeze_timeout: float, deadline: float) -> None:
        self._filesystems = filesystems
        self._freeze_timeout = freeze_timeout
        self._deadline = deadline
        self._mounts: list[int] = []
        self._control: socket.socket | None = None
        self._process: Popen[bytes] | None = None
        self._early: bytes | None = None  # the event by which the guardian let go
        self._is_stuck = False

    def freeze(self) -> None:
        """Start the guardian and let it freeze; on EffectError all is thawed, but close() is still due."""
        for filesystem in self._filesystems:
            self._mounts.append(_open(filesystem))
        control = self._start_guardian()
        control.settimeout(self._freeze_timeout + _SLACK)
        what, index, error = self._ask(control, guardian.FREEZE)
        if what == guardian.FROZEN:
            return
        if what == b"":
            # Killed, perhaps in the middle: its child thaws for itself, here is for the rest.
            guardian.thaw_all(self._mounts)
            raise EffectError("the guardian was killed while it froze")
        if what == guardian.STUCK:
            self._is_stuck = True
            raise EffectError(f"freezing {self._filesystems[index]} does not end; the others are thawed")
        if what == guardian.FAILED and index < len(self._filesystems):
            raise EffectError(f"cannot freeze {self._filesystems[index]}: {_explain(error)}")
        raise EffectError("the freeze was broken off")

    def holds(self) -> bool:
        """Whether the guardian still keeps the mounts frozen, or is dead and cannot have thawed them."""
        if self._early is None and self._control is not None:
            self._control.setblocking(False)
            try:
                self._early = self._control.recv(guardian.EVENT.size)[:1] or None
            except OSError:
                pass
        return self._early is None

    def thaw(self, timeout: float) -> None:
        """Thaw, by the guardian or in its place; EffectError if it was too early or did not work."""
        if not self.holds():
            why = "at its deadline" if self._early == guardian.EXPIRED else "because of a signal"
            raise EffectError(f"the guardian thawed everything before it was asked to, {why}")
        assert self._control is not None
        self._control.settimeout(timeout)
        what, index, error = self._ask(self._control, guardian.THAW)
        if what == b"":
            index, error = guardian.thaw_all(self._mounts)
        elif what != guardian.THAWED:
            raise EffectError("the guardian thawed everything before it was asked to")
        if error:
            self._is_stuck = True  # the guardian goes on trying
            raise EffectError(f"cannot thaw {self._filesystems[index]}: {os.strerror(error)}")

    def close(self) -> Popen[bytes] | None:
        """Let go of everything: a guardian that still holds something thaws it.

        Returns the guardian if it cannot end yet, because a freeze or thaw hangs in the kernel.
        """
        if self._control is not None:
            self._control.close()
        for fd in self._mounts:
            os.close(fd)
        self._mounts.clear()
        if self._process is not None:
            from subprocess import TimeoutExpired

            try:
                self._process.wait(0 if self._is_stuck else _GUARDIAN_END)
            except TimeoutExpired:
                return self._process
        return None

    def _start_guardian(self) -> socket.socket:
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
        self._control.settimeout(_GUARDIAN_START)
        what, _, unlocked = self._receive(self._control)
        if what != guardian.READY:
            raise EffectError("the guardian does not start")
        if unlocked:
            import logging

            logging.getLogger("hvring.guest").warning(
                "the guardian's memory is not locked: %s", os.strerror(unlocked)
            )
        return self._control

    def _ask(self, control: socket.socket, order: bytes) -> tuple[bytes, int, int]:
        try:
            control.send(order)
        except OSError:
            pass  # it is gone, but may have left its last event
        return self._receive(control)

    @staticmethod
    def _receive(control: socket.socket) -> tuple[bytes, int, int]:
        """The next event, named b"" if the guardian is gone. EffectError if none comes in time."""
        try:
            event = control.recv(guardian.EVENT.size)
        except TimeoutError as problem:
            raise EffectError("the guardian does not answer") from problem
        except OSError:
            event = b""
        if len(event) != guardian.EVENT.size:
            return b"", -1, 0
        what, index, error = guardian.EVENT.unpack(event)
        return what, index, error


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


def _may_freeze() -> bool:
    with open("/proc/self/status", encoding="utf-8", errors="replace") as facts:
        for line in facts:
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> _CAP_SYS_ADMIN & 1)
    return False


def _explain(error: int) -> str:
    if error == errno.EOPNOTSUPP:
        return "this kind of file system cannot be frozen; exclude it"
    if error == errno.ETIMEDOUT:
        return "it took too long"
    if error == errno.ECHILD:
        return "the freezing process was killed"
    return os.strerror(error)
