# SPDX-License-Identifier: Apache-2.0
"""Which virtual machine filled the pools: a disk that was copied brings another one's along."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from hvring.errors import EffectError
from hvring.guest.pool import POOLS, Pool, explain
from hvring.guest.regular import read_regular

RECORD: Final = ".hvring_vm"  # beside the pools: "vm ID" and "boot ID", a line each
_MODE: Final = 0o600
_UUID: Final = "/sys/class/dmi/id/product_uuid"
_BOOT: Final = "/proc/sys/kernel/random/boot_id"


def vm_id(path: str = _UUID) -> str:
    """The firmware's id of this machine in upper case, which Hyper-V makes anew for each; "" if it cannot be read."""
    try:
        return read_regular(path).decode("ascii", "replace").strip().upper()
    except OSError:
        return ""


@dataclass(frozen=True, slots=True)
class StalePools:
    """The pools are those of the machine ``was``, this is ``now``; ``emptied``: they were, just now."""

    was: str
    now: str
    emptied: bool = False

    def __str__(self) -> str:
        what = "were filled on another machine" + (" and have been emptied" if self.emptied else "")
        return f"the pools {what}: {self.was}; this one is {self.now}"


class PoolOwner:
    """The record of a directory with pools.  Every method may raise EffectError."""

    def __init__(self, directory: str | os.PathLike[str], identify: Callable[[], str] | None = None) -> None:
        self.directory = os.fspath(directory)
        self._identify = identify or vm_id

    def stale(self) -> StalePools | None:
        """Not None: these are another machine's.  Without a record, or the right to read it, nobody can tell."""
        was, now = self._recorded(), self._identify()
        return StalePools(was, now) if was and now and was != now else None

    def record(self) -> None:
        """This machine's they are from now on."""
        now = self._identify()
        if not now or now == self._recorded():
            return
        boot = ""
        with contextlib.suppress(OSError):
            boot = read_regular(_BOOT).decode("ascii", "replace").strip()
        path = self._path
        try:
            fd = os.open(
                f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, _MODE
            )
            with open(fd, "w", encoding="ascii") as file:
                file.write(f"vm {now}\nboot {boot}\n")
            os.rename(f"{path}.new", path)
        except OSError as problem:
            raise explain(path, problem) from problem

    def forget(self) -> bool:
        """Remove the record; False if there is none."""
        try:
            os.unlink(self._path)
        except FileNotFoundError:
            return False
        except OSError as problem:
            raise explain(self._path, problem) from problem
        return True

    def empty(self) -> list[str]:
        """Remove all records of all pools; the paths of the files that had some.  A pool that resists is told last."""
        emptied = []
        problems: list[EffectError] = []
        for number in POOLS:
            pool = Pool(os.path.join(self.directory, f".kvp_pool_{number}"))
            try:
                if pool.exchange(None, ()):
                    emptied.append(pool.path)
            except EffectError as problem:
                problems.append(problem)
        if problems:
            raise problems[0]
        return emptied

    @property
    def _path(self) -> str:
        return os.path.join(self.directory, RECORD)

    def _recorded(self) -> str:
        try:
            lines = read_regular(self._path, 512).decode("ascii", "replace").splitlines()
        except OSError:
            return ""
        return next((line[3:].strip() for line in lines if line.startswith("vm ")), "")
