# SPDX-License-Identifier: Apache-2.0
"""Hearing of a pool's changes without asking again and again."""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Awaitable
from typing import Final, Self, TypeVar

from hvring.guest.pool import Pool as PoolFile
from hvring.pending import Pending, settle, then
from hvring.pools.changes import Change, Items, difference
from hvring.pools.inotify import CLOSE_WRITE, MODIFY, OVERFLOW, Inotify

#: Seconds in which who truncated a file to write it anew has put back what is still true, if it does not say so before.
_GRACE: Final = 0.1

T = TypeVar("T")


class Watch:
    """The changes of one pool, from the moment that this was made: an iterator and an asynchronous iterator.

    What is read is compared with what was read before: the newest state is never missed, one that lasted for a moment
    may be.  The file may be missing, replaced, or truncated and written anew, and so may its folder.  Iterating raises
    EffectError when the pool cannot be read, and goes on if asked to.  Close it, or use it in a ``with``.
    """

    def __init__(self, file: PoolFile) -> None:
        """Raises EffectError."""
        self._file = file
        self._inotify = Inotify()
        self._ready: deque[Change] = deque()
        self._is_dirty = False
        self._is_closed_by_writer = True
        self._grace_ends = math.inf
        try:
            # Armed first and read then: what happens between is in both, and compares equal.
            self._arm()
            found = settle(file.begin_items())
            self.items: Items = found  #: what the pool held when it was last read
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """Gets readable when there may be something for :meth:`begin`."""
        return self._inotify.fileno()

    def begin(self, until: float = math.inf) -> list[Change] | Pending[list[Change]]:
        """All changes since the last time, one at least, or a Pending; none at ``until`` (``time.monotonic()``)."""
        if self._ready:
            ready = [*self._ready]
            self._ready.clear()
            return ready
        return self._begin(until)

    def close(self) -> None:
        """No changes any more; harmless twice."""
        self._inotify.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Change:
        while not self._ready:
            if self.fileno() < 0:
                raise StopIteration
            changes = settle(self._begin(math.inf))
            self._ready.extend(changes)
        return self._ready.popleft()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change:
        while not self._ready:
            if self.fileno() < 0:
                raise StopAsyncIteration
            changes = await settled(self._begin(math.inf))
            self._ready.extend(changes)
        return self._ready.popleft()

    # ------------------------------------------------------------------------- inside

    def _begin(self, until: float) -> list[Change] | Pending[list[Change]]:
        if self.fileno() < 0:
            return []
        self._notice()
        now = time.monotonic()
        if self._is_dirty or now >= self._grace_ends:
            self._is_dirty = False
            return then(self._file.begin_items(), lambda items: self._compared(items, until))
        return self._later(until)

    def _later(self, until: float) -> list[Change] | Pending[list[Change]]:
        if time.monotonic() >= until:
            return []
        return Pending(lambda: self._begin(until), min(until, self._grace_ends), self.fileno())

    def _notice(self) -> None:
        names = {os.path.basename(path) for path in self._paths()}
        is_ours = False
        for name, mask in self._inotify.read():
            if not name or name in names or mask & OVERFLOW or self._is_waiting_for_folder:
                is_ours = True
                self._is_closed_by_writer = not mask & MODIFY or bool(mask & CLOSE_WRITE)
        if is_ours:
            self._is_dirty = True
            self._arm()

    def _arm(self) -> None:
        """Watch the folders of the file and of what it may be a link to, or those in which they will be made."""
        while True:
            folders = {_nearest(os.path.dirname(path)) for path in self._paths()}
            self._is_waiting_for_folder = any(
                not os.path.isdir(os.path.dirname(path) or ".") for path in self._paths()
            )
            try:
                self._inotify.follow(folders)
            except FileNotFoundError:
                continue  # gone in this moment
            if folders == {_nearest(os.path.dirname(path)) for path in self._paths()}:
                return

    def _paths(self) -> tuple[str, str]:
        path = os.path.abspath(self._file.path)
        return path, os.path.realpath(path)

    def _compared(self, items: Items, until: float) -> list[Change] | Pending[list[Change]]:
        changes = list(difference(self.items, items))
        if any(change.value is None for change in changes):
            now = time.monotonic()
            if self._grace_ends == math.inf and not self._is_closed_by_writer:
                self._grace_ends = now + _GRACE
            if not self._is_closed_by_writer and now < self._grace_ends:
                return self._later(until)
        self._grace_ends = math.inf
        self._is_closed_by_writer = True
        self.items = items
        return changes or self._later(until)


def _nearest(folder: str) -> str:
    """The folder, or what there is of the way to it."""
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return folder


async def settled(outcome: T | Pending[T]) -> T:
    """The result; the running event loop waits for it."""
    while isinstance(outcome, Pending):
        try:
            await _due(outcome)
        except BaseException:
            outcome.cancel()
            raise
        outcome = outcome.resume()
    return outcome


def _due(pending: Pending[T]) -> Awaitable[None]:
    import asyncio

    loop = asyncio.get_running_loop()
    due = loop.create_future()

    def wake() -> None:
        if not due.done():
            due.set_result(None)

    timer = None
    if pending.at < math.inf:
        timer = loop.call_later(max(0.0, pending.at - time.monotonic()), wake)
    # A descriptor of our own: the caller's loop may watch the same one for a reason of its own.
    descriptor = os.dup(pending.descriptor) if pending.descriptor >= 0 else -1
    if descriptor >= 0:
        loop.add_reader(descriptor, wake)

    def forget(_: object) -> None:
        if timer is not None:
            timer.cancel()
        if descriptor >= 0:
            loop.remove_reader(descriptor)
            os.close(descriptor)

    due.add_done_callback(forget)
    return due
