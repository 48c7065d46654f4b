# SPDX-License-Identifier: Apache-2.0
"""The five key-value pools in the files of Linux's in-tree daemon (PROTOCOL §4.4.4, §4.4.5)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, Protocol

from hvring.errors import EffectError
from hvring.guest import network
from hvring.guest.identity import Identity
from hvring.guest.network import IpInfo
from hvring.guest.pace import Pace
from hvring.guest.pool import DIRECTORY, MAX_RECORDS, POOLS, Pool, make_directory
from hvring.guest.pool_owner import PoolOwner, StalePools
from hvring.guest.records import KEY_SIZE, RECORD_SIZE, VALUE_SIZE, PoolLimitError
from hvring.pending import Pending
from hvring.reasons import Reason
from hvring.status import Status

if TYPE_CHECKING:  # loaded when a host's settings are to be written
    from hvring.guest.ip_backends.applying import IpSetter

__all__ = [
    "DIRECTORY",
    "KEY_SIZE",
    "MAX_RECORDS",
    "POOLS",
    "RECORD_SIZE",
    "VALUE_SIZE",
    "KvpStore",
    "Pool",
    "PoolLimitError",
    "PoolStore",
]


class KvpStore(Protocol):
    """What the data-exchange service needs.  Every method may raise EffectError.

    A method that gives a Pending limits its time itself.  Text in a key or a value that is no proper Unicode stands
    there as "surrogateescape" makes it.
    """

    def prepare(self) -> StalePools | None:
        """Make what other programs expect to find; the rest works without it.  Not None: what was found is stale."""
        ...

    def get(self, pool: int, key: str) -> str | Pending[str | None] | None:
        """The value, or None if there is no such key."""
        ...

    def set(self, pool: int, key: str, value: str) -> Pending[None] | None:
        """Add or replace a value."""
        ...

    def delete(self, pool: int, key: str) -> bool | Pending[bool]:
        """Remove a key; False if it was not there."""
        ...

    def record(self, pool: int, index: int) -> tuple[str, str] | Pending[tuple[str, str] | None] | None:
        """Key and value at a place in the pool, or None past the end."""
        ...

    def automatic(self) -> Sequence[tuple[str, str]]:
        """The keys of the AUTO pool, made up on demand."""
        ...

    def ip_info(self, mac: str) -> IpInfo | None:
        """What is known of the adapter with this MAC address."""
        ...

    def adapter(self, guid: str) -> bool:
        """Whether there is an adapter with this instance GUID."""
        ...

    def set_ip(self, guid: str, wish: IpInfo) -> Pending[None] | None:
        """Set up the adapter with this instance GUID as the host wishes."""
        ...


class PoolStore:
    """The five pools of a directory, and what is made up on demand: a :class:`KvpStore`.

    All pools together hold ``max_records`` records at most: set() raises PoolLimitError then.  A change that took long
    is followed by a rest: the next one is Pending for so long.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] = DIRECTORY,
        *,
        identity: Identity | None = None,
        timeout: float = 2.0,
        max_records: int = MAX_RECORDS,
        stale: Literal["tell", "clean"] = "tell",
        owner: PoolOwner | None = None,
        set_ip: Literal["refuse", "networkmanager", "networkd", "netplan"] = "refuse",
        set_ip_directory: str | os.PathLike[str] | None = None,
        set_ip_apply: Sequence[str] = (),
        real: bool = True,
    ) -> None:
        """``timeout``: seconds to wait for others' locks; ``stale``: "clean" empties another machine's pools; not
        ``real``: settings from the host are checked only."""
        self.directory = os.fspath(directory)
        paths = [os.path.join(self.directory, f".kvp_pool_{n}") for n in POOLS]
        self.pools = tuple(
            Pool(
                path,
                timeout=timeout,
                max_records=max_records,
                elsewhere=_records_in([other for other in paths if other != path]),
                makes_directory=True,
            )
            for path in paths
        )
        self._identity = identity or Identity()
        self._owner = owner or PoolOwner(self.directory)
        self._set_ip = set_ip
        self._set_ip_directory = set_ip_directory
        self._set_ip_apply = set_ip_apply
        self._ip_setter: IpSetter | None = None
        self._ip_left: list[int] = []
        self._real = real
        self._clean_stale = stale == "clean"
        # A change of a large pool may write all of it anew: a host could have the disk and this thread to itself.
        self._pace = Pace()

    def prepare(self) -> StalePools | None:
        """Make the directory and the five files where they are missing, as many as can be; raises EffectError.

        Notes beside them which machine's they are, and sees whether that was another one.
        """
        make_directory(self.directory)
        problems = []
        for pool in self.pools:
            try:
                pool.create()
            except EffectError as problem:
                problems.append(problem)
        if problems:
            raise problems[0]
        stale = self._owner.stale()
        if stale is not None:
            if not self._clean_stale:
                return stale
            self._owner.empty()
            stale = replace(stale, emptied=True)
        self._owner.record()
        return stale

    def get(self, pool: int, key: str) -> str | Pending[str | None] | None:
        """The value, or None if there is no such key."""
        return self._pool(pool).begin_get(key)

    def set(self, pool: int, key: str, value: str) -> Pending[None] | None:
        """Add or replace a value."""
        return self._pace.go(lambda: self._pool(pool).begin_set(key, value))

    def delete(self, pool: int, key: str) -> bool | Pending[bool]:
        """Remove a key; False if it was not there."""
        return self._pace.go(lambda: self._pool(pool).begin_delete(key))

    def record(self, pool: int, index: int) -> tuple[str, str] | Pending[tuple[str, str] | None] | None:
        """Key and value at a place in the pool, or None past the end."""
        return self._pool(pool).begin_record(index)

    def automatic(self) -> Sequence[tuple[str, str]]:
        """The ten keys of the AUTO pool (PROTOCOL §4.4.4)."""
        return self._identity.automatic()

    def ip_info(self, mac: str) -> IpInfo | None:
        """What is known of the adapter with this MAC address."""
        return network.ip_info(mac)

    def adapter(self, guid: str) -> bool:
        """Whether there is an adapter with this instance GUID."""
        return network.adapter_exists(guid)

    def inherit(self, before: PoolStore) -> None:
        """Programs for IP settings that nobody waited for are still to be reaped."""
        self._ip_left = before._ip_left

    def set_ip(self, guid: str, wish: IpInfo) -> Pending[None] | None:
        """Refused, unless the settings name whom to write it down for."""
        if self._set_ip == "refuse":
            raise EffectError("this machine's network is not changed for a host", Status.NOT_SUPPORTED)
        if self._ip_setter is None:
            from hvring.guest.ip_backends.applying import IpSetter

            self._ip_setter = IpSetter(
                self._set_ip, self._set_ip_directory, self._set_ip_apply, real=self._real, left=self._ip_left
            )
        return self._ip_setter.set(guid, wish)

    def _pool(self, number: int) -> Pool:
        if number not in POOLS:
            raise EffectError(f"there is no pool {number}", reason=Reason.NO_SUCH_POOL)
        return self.pools[number]


def _records_in(paths: Sequence[str]) -> Callable[[], int]:
    def count() -> int:
        found = 0
        for path in paths:
            try:
                found += os.stat(path).st_size // RECORD_SIZE
            except OSError:
                continue
        return found

    return count
