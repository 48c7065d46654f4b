# SPDX-License-Identifier: Apache-2.0
"""Starting the guardian where nobody kills it together with the process that it guards (decision 0006)."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from hvring.errors import EffectError
from hvring.guest import guardian
from hvring.guest.mounts import Filesystem
from hvring.reasons import Reason

_BOOTED: Final = "/run/systemd/system"
#: Where a service manager starts a guardian for each connection, apart from this process's sandbox and control group.
SOCKET: Final = "/run/hvring/guardian"
_SCOPE: Final = (
    "systemd-run",
    "--scope",
    "--collect",
    "--quiet",
    "--no-ask-password",
    "--description=hvring: thaws the file systems when a backup is over or hvring is gone",
)


@dataclass(frozen=True, slots=True)
class Way:
    """One way to start the guardian: what its command line begins with, and seconds until it must be ready.

    ``socket``: it is not started from here, but by whoever listens there.
    """

    prefix: tuple[str, ...]
    timeout: float
    socket: str = ""


PLAIN: Final = Way((), 15.0)


def is_managed(environment: Mapping[str, str] = os.environ, proc: str = "/proc") -> bool:
    """Whether a service manager started this process, and would kill all of its control group."""
    if environment.get("INVOCATION_ID"):
        return True
    try:
        with open(f"{proc}/self/cgroup", encoding="utf-8", errors="replace") as groups:
            return any(line.rstrip("\n").endswith((".service", ".scope")) for line in groups)
    except OSError:
        return False


def ways(
    environment: Mapping[str, str] = os.environ, booted: str = _BOOTED, listener: str = SOCKET
) -> list[Way]:
    """How to start the guardian, the best way first; the last one always works."""
    found = []
    if _is_ours(listener):
        found.append(Way((), 5.0, listener))
    if is_managed(environment) and os.path.isdir(booted):
        # A user's manager can be asked only by whoever it started; the system's one serves root in any case.
        if environment.get("MANAGERPID", "1") != "1" and environment.get("XDG_RUNTIME_DIR"):
            found.append(Way((*_SCOPE, "--user", "--"), 5.0))
        found.append(Way((*_SCOPE, "--"), 5.0))
    return [*found, PLAIN]


def _is_ours(path: str) -> bool:
    """Whether this user's guardians are to be had there: another's could not be killed, and is not to be trusted."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISSOCK(found.st_mode) and found.st_uid == os.geteuid()


class Family:
    """The guardian and its freezing child: the socket to them, and whether they live.  Closed by :meth:`close`."""

    def __init__(
        self, control: socket.socket, lifeline: int, process: subprocess.Popen[bytes] | None = None
    ) -> None:
        """``process``: None where somebody else starts it; then it comes by :meth:`meet`, or never."""
        self.control = control
        self.lifeline = lifeline  #: ends when the last of them is gone
        self.guardian = -1  #: gets readable when the guardian is gone; -1: it is not known yet
        self.pid = 0  #: of the guardian, and of its process group
        self._process = process
        if process is not None:
            self.guardian, self.pid = os.pidfd_open(process.pid), process.pid

    def meet(self, pidfd: int) -> None:
        """The guardian has begun."""
        self.guardian, self.pid = pidfd, guardian.pid_of(pidfd)

    def order(self, order: bytes) -> None:
        """Tell the guardian; one that is gone has perhaps left its last words."""
        try:
            self.control.send(order, socket.MSG_DONTWAIT)
        except OSError:
            pass

    def kill(self) -> None:
        """All of them; one that waits in the kernel goes when that wait is over.  Not once they were reaped."""
        if self.pid <= 1:  # not known, or gone
            return
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass

    def close(self) -> None:
        """Once all of them are gone."""
        self.control.close()
        os.close(self.lifeline)
        if self.guardian >= 0:
            os.close(self.guardian)
        if self._process is not None:
            self._process.wait()

    def abandon(self) -> None:
        """Nobody waits any more: they thaw what is frozen, and end."""
        self.control.close()
        os.close(self.lifeline)
        if self.guardian >= 0:
            os.close(self.guardian)
        if self._process is not None:
            self._process.returncode = 0  # as far as anybody here will ever know


def start(way: Way, filesystems: Sequence[Filesystem], timeouts: tuple[float, float, float]) -> Family:
    """``timeouts``: to open one mount, to freeze all, and until the guardian thaws by itself.  Raises EffectError."""
    # One that is not started from here may be in another mount namespace, and reaches this one's mounts through /proc.
    root = f"/proc/{os.getpid()}/root" if way.socket else ""
    mounts = [
        [(mount.path if mount.process else root + mount.path, mount.id) for mount in filesystem.mounts]
        for filesystem in filesystems
    ]
    plan = os.memfd_create("hvring-plan", os.MFD_CLOEXEC)
    service = os.pidfd_open(os.getpid())
    lifeline, theirs = os.pipe()
    control = None
    process = None
    ours = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        with open(plan, "wb", closefd=False) as file:
            file.write(json.dumps(mounts).encode())
        if way.socket:
            ours.setblocking(False)  # a manager that does not take connections is not waited for
            ours.connect(way.socket)
            socket.send_fds(ours, [" ".join(map(str, timeouts)).encode()], [theirs, service, plan])
            return Family(ours, lifeline)
        ours.close()
        ours, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        descriptors = (control.fileno(), theirs, service, plan)
        process = subprocess.Popen(
            # -I -S: nothing from the environment, the user's site or this directory
            [
                *way.prefix,
                *(sys.executable, "-I", "-S", guardian.__file__),
                *map(str, descriptors),
                *map(str, timeouts),
            ],
            pass_fds=descriptors,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        return Family(ours, lifeline, process)
    except OSError as problem:
        ours.close()
        os.close(lifeline)
        if process is not None:  # no descriptor was left for it
            process.kill()
            process.wait()
        raise EffectError(
            f"cannot start the guardian: {problem}", reason=Reason.GUARDIAN_NOT_STARTED
        ) from problem
    finally:
        if control is not None:
            control.close()
        for descriptor in (theirs, service, plan):
            os.close(descriptor)
