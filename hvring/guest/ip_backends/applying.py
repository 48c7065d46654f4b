# SPDX-License-Identifier: Apache-2.0
"""Writing an order down, as one change, and having it read by whom it is for."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from importlib import import_module
from typing import Final, Literal

from hvring.errors import EffectError
from hvring.guest.command import run, wait_for
from hvring.guest.ip_backends.order import Order, find_adapter, order
from hvring.guest.network import IpInfo
from hvring.guest.pool import explain
from hvring.guest.rehearsal import rehearse
from hvring.pending import Pending, steps
from hvring.reasons import Reason
from hvring.status import Status

Backend = Literal["networkmanager", "networkd", "netplan"]

_TIMEOUT: Final = 20.0  # seconds for the program; a host waits for half a minute


class IpSetter:
    """Takes a host's settings for an adapter to one of the three."""

    def __init__(
        self,
        backend: Backend,
        directory: str | os.PathLike[str] | None = None,
        apply: Sequence[str] = (),
        *,
        net: str = "/sys/class/net",
        timeout: float = _TIMEOUT,
        real: bool = True,
        left: list[int] | None = None,
    ) -> None:
        """``directory``: None is the usual one; ``apply``: the program that makes it count now, and its words.

        ``left`` gets the programs that were not waited for until their end.
        """
        self._backend = import_module(f"hvring.guest.ip_backends.{backend}")
        self._directory = os.fspath(directory or self._backend.DIRECTORY)
        self._apply = tuple(apply)
        self._net = net
        self._timeout = timeout
        self._real = real
        self._left = [] if left is None else left
        self.rehearsed: list[Order] = []

    def set(self, guid: str, wish: IpInfo) -> Pending[None] | None:
        """Check, write and apply; raises EffectError with the status for the host, by the Pending too.

        What is written stays when the program fails: it counts from the next start on.
        """
        adapter = find_adapter(guid, net=self._net)
        if adapter is None:
            raise EffectError(f"there is no adapter {guid!r}", Status.NOT_FOUND, Reason.BAD_REQUEST)
        wanted = order(adapter, wish)
        if not self._real:
            rehearse(self.rehearsed, wanted, f"set up {adapter.name}")
            return None
        self._write(wanted)
        if not self._apply:
            return None
        self._left[:] = [pid for pid in self._left if wait_for(pid) is None]
        return steps(run(self._apply, time.monotonic() + self._timeout, self._left, stays=False))

    def _write(self, wanted: Order) -> None:
        path = os.path.join(self._directory, self._backend.file_name(wanted))
        new = os.path.join(self._directory, f".{os.path.basename(path)}.new")
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(new)
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                with open(fd, "w", encoding="ascii") as file:
                    file.write(self._backend.text(wanted))
                    file.flush()
                    os.fchmod(fd, self._backend.MODE)
                    os.fsync(fd)
                os.rename(new, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(new)
                raise
        except OSError as problem:
            raise explain(path, problem) from problem
