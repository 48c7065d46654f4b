# SPDX-License-Identifier: Apache-2.0
"""The pools of this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from hvring.errors import EffectError
from hvring.guest.pool import DIRECTORY, POOLS
from hvring.pools.limits import HOST, Limits
from hvring.pools.pool import Pool

#: By their numbers; number 2, "auto", is made up on demand, and its file says nothing.
NAMES: Final = ("external", "guest", "auto", "auto-external", "auto-internal")


class Pools:
    """The pool files of a directory: ``pools.guest``, ``pools["guest"]``, ``pools[1]``.

    ``external`` is written by the host's administrator, ``guest`` by this machine, ``auto-external`` by the host.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] = DIRECTORY,
        *,
        limits: Limits = HOST,
        timeout: float = 2.0,
    ) -> None:
        """``timeout``: seconds to wait for other programs' locks.  Touches nothing yet."""
        self.directory = os.fspath(directory)
        self._pools = tuple(
            Pool(os.path.join(self.directory, f".kvp_pool_{n}"), limits=limits, timeout=timeout)
            for n in POOLS
        )

    @property
    def external(self) -> Pool:
        """What the host's administrator tells this machine."""
        return self._pools[0]

    @property
    def guest(self) -> Pool:
        """What this machine tells the host."""
        return self._pools[1]

    @property
    def auto_external(self) -> Pool:
        """What the host tells of itself and of this virtual machine."""
        return self._pools[3]

    def __getitem__(self, which: int | str) -> Pool:
        """By number or name; raises EffectError, KeyError's kind, for one that there is not."""
        if which in NAMES:
            return self._pools[NAMES.index(str(which))]
        if isinstance(which, int) and which in POOLS:
            return self._pools[which]
        raise NoSuchPoolError(f"there is no pool {which!r}; there are {', '.join(NAMES)}")

    def __iter__(self) -> Iterator[str]:
        return iter(NAMES)


class NoSuchPoolError(EffectError, KeyError):
    """Neither a number nor a name of a pool."""

    def __str__(self) -> str:  # KeyError's quotes its text
        return str(self.args[0])
