# SPDX-License-Identifier: Apache-2.0
"""One pool, for programs of this machine."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Collection, Sequence

from hvring.errors import EffectError
from hvring.guest.pool import Pool as PoolFile
from hvring.guest.pool import make_directory
from hvring.pending import Pending, settle, then
from hvring.pools import chunks
from hvring.pools.changes import Change, Items
from hvring.pools.chunks import Convention, MissingChunkError
from hvring.pools.limits import HOST, Limits
from hvring.pools.watch import Watch, settled


class PoolTimeoutError(EffectError, TimeoutError):
    """What was waited for did not come."""


class Pool:
    """Keys and values in one pool file; a missing file is an empty pool.

    Texts are UTF-8; bytes of others that are none read as "surrogateescape" makes them.  Every method raises
    EffectError when the file cannot be used, and PoolBusyError, one of these, when another program keeps it locked for
    ``timeout`` seconds.  Safe to use from several threads and processes.
    """

    def __init__(self, path: str | os.PathLike[str], *, limits: Limits = HOST, timeout: float = 2.0) -> None:
        self.path = os.fspath(path)
        self.limits = limits
        self._file = PoolFile(self.path, timeout=timeout)

    def __len__(self) -> int:
        return len(self._file)

    def __contains__(self, key: str) -> bool:
        return self._file.get(key) is not None

    def items(self) -> list[tuple[str, str]]:
        """All keys and values in the order of the file; a key comes as often as it is there, and the last counts."""
        return self._file.items()

    def get(self, key: str, *, join: Convention | None = None) -> str | None:
        """The value, or None; with ``join`` that which several records make.  Raises MissingChunkError."""
        return self._file.get(key) if join is None else chunks.join(self.items(), key, join)

    def set(self, key: str, value: str, *, split: Convention | None = None) -> None:
        """Store a value; ``split``: as several records in this way, as one change.

        Raises PoolLimitError for what is too long for the pool's ``limits``.
        """
        if split is None:
            self.limits.check(key, value)
            make_directory(os.path.dirname(self.path) or ".")
            self._file.set(key, value)
        else:
            records = chunks.split(key, value, split, self.limits)
            self.exchange(chunks.keys(self.items(), key, split), records)

    def delete(self, key: str, *, joined: Convention | None = None) -> bool:
        """Remove a key, or with ``joined`` all records of a value that was split; False if there is none."""
        if joined is None:
            return self._file.delete(key)
        return self._file.exchange(chunks.keys(self.items(), key, joined), ())

    def exchange(self, drop: Collection[str] | None, add: Sequence[tuple[str, str]]) -> bool:
        """Remove these keys (None: all) and add these records, as one change; False: they are what is there.

        Takes what a file holds, whatever the ``limits``.  Raises PoolLimitError for what no record does.
        """
        make_directory(os.path.dirname(self.path) or ".")
        return self._file.exchange(drop, add)

    def watch(self) -> Watch:
        """The changes from now on, for ``for`` and ``async for``."""
        return Watch(self._file)

    def wait(self, key: str, timeout: float | None = None, *, quiet: float = 1.0) -> str:
        """The value of ``key``, as soon as there is one; PoolTimeoutError after ``timeout`` seconds.

        ``key.0``, ``key.1``, … are joined.  Nothing says which one is the last, so such a value counts when it did not
        change for ``quiet`` seconds.
        """
        with self.watch() as watch:
            return settle(_Wait(self.path, watch, key, timeout, quiet).begin())

    async def wait_async(self, key: str, timeout: float | None = None, *, quiet: float = 1.0) -> str:
        """As :meth:`wait`, in an event loop."""
        with self.watch() as watch:
            return await settled(_Wait(self.path, watch, key, timeout, quiet).begin())


class _Wait:
    """Waiting for one value."""

    def __init__(self, path: str, watch: Watch, key: str, timeout: float | None, quiet: float) -> None:
        now = time.monotonic()
        self._path = path
        self._watch = watch
        self._key = key
        self._give_up_at = math.inf if timeout is None else now + timeout
        self._timeout = timeout
        self._quiet = quiet
        self._parts: str | None = None
        self._quiet_at = math.inf

    def begin(self, _: Sequence[Change] = ()) -> str | Pending[str]:
        now = time.monotonic()
        items: Items = self._watch.items
        whole = next((value for name, value in reversed(items) if name == self._key), None)
        if whole is not None:
            return whole
        missing = ""
        try:
            parts = chunks.join(items, self._key, Convention.IGNITION)
        except MissingChunkError as problem:
            parts, missing = None, f": {problem}"
        if parts != self._parts:
            self._parts = parts
            self._quiet_at = math.inf if parts is None else now + self._quiet
        if parts is not None and now >= self._quiet_at:
            return parts
        if now >= self._give_up_at:
            raise PoolTimeoutError(
                f"{self._path}: no {self._key!r} within {self._timeout:g} seconds{missing}"
            )
        return then(self._watch.begin(min(self._give_up_at, self._quiet_at)), self.begin)
