# SPDX-License-Identifier: Apache-2.0
"""Starting the process that runs the hooks, where nobody ends it together with the agent (decisions 0006, 0016)."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

from hvring.errors import EffectError
from hvring.guest.launch import Way
from hvring.guest.launch import ways as launch_ways
from hvring.reasons import Reason

#: Where a service manager starts one for each connection.
SOCKET: Final = "/run/hvring/hooks"
_PROGRAM: Final = os.path.join(os.path.dirname(os.path.abspath(__file__)), "__main__.py")


def ways() -> list[Way]:
    """How to start it, the best way first."""
    return launch_ways(listener=SOCKET)


class RunnerProcess:
    """``control`` is the socket to it, whose end is its end."""

    def __init__(self, control: socket.socket, process: subprocess.Popen[bytes] | None) -> None:
        self.control = control
        self._process = process
        self._pidfd = -1 if process is None else os.pidfd_open(process.pid)

    def meet(self, pidfd: int) -> None:
        """One that somebody else has started has begun."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
        self._pidfd = pidfd

    def kill(self) -> None:
        """One that does not answer; its end is seen on the socket, if it may be killed."""
        try:
            if self._pidfd >= 0:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        except OSError:
            pass

    def close(self, is_gone: bool) -> None:
        """``is_gone``: the socket has said so; else it goes on alone, and aborts."""
        self.control.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        if self._process is not None:
            if is_gone:
                self._process.wait()
            else:
                self._process.returncode = 0  # as far as anybody here will ever know


def start(way: Way, request: Mapping[str, Any], others: Sequence[int]) -> RunnerProcess:
    """``others``: descriptors of hooks that run.  Raises EffectError."""
    service = os.pidfd_open(os.getpid())
    asked = os.memfd_create("hvring-hooks", os.MFD_CLOEXEC)
    ours = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    theirs = None
    try:
        with open(asked, "wb", closefd=False) as file:
            file.write(json.dumps(request).encode())
        if way.socket:
            ours.setblocking(False)
            ours.connect(way.socket)
            socket.send_fds(ours, [b"hooks"], [service, asked, *others])
            return RunnerProcess(ours, None)
        ours.close()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        descriptors = (theirs.fileno(), service, asked, *others)
        process = subprocess.Popen(
            [*way.prefix, sys.executable, "-I", "-S", _PROGRAM, *map(str, descriptors)],
            pass_fds=descriptors,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        return RunnerProcess(ours, process)
    except OSError as problem:
        ours.close()
        raise EffectError(
            f"cannot start the process that runs the hooks: {problem}", reason=Reason.HOOKS_NOT_RUN
        ) from problem
    finally:
        if theirs is not None:
            theirs.close()
        os.close(service)
        os.close(asked)
