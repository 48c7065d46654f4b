# SPDX-License-Identifier: Apache-2.0
"""Back the guest up: freeze its file systems, do something meanwhile, thaw them (PROTOCOL §4.5)."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from hvring.errors import MessageError
from hvring.events import EventKind
from hvring.host.errors import GuestStatusError, HostError
from hvring.host.link import Link
from hvring.host.session import Session
from hvring.host.uninterrupted import uninterrupted
from hvring.ic import Frame
from hvring.ic.vss import Lun, VssFlags, VssFreeze, VssOperation


@dataclass(frozen=True, slots=True)
class BackupReport:
    """How a backup went: the guest's flags, and the seconds from sending FREEZE to THAW's answer.

    ``flags``: 5 (``hvring.ic.vss.NO_AUTO_RECOVERY``) of hvring over a ring; 0 of Linux's driver, which sends back what
    it was asked with (PROTOCOL §4.5.2), and so of hvring behind that driver.
    """

    flags: int
    device_flags: int
    frozen_seconds: float


class VssVerbs:
    """The administrator's verbs for backup; a status that is not success raises GuestStatusError."""

    def __init__(self, session: Session) -> None:
        self._session = session
        # The link to which FREEZE was sent; held, one that is gone would keep its memory.
        self._frozen: weakref.ref[Link] | None = None
        self._one_backup = asyncio.Lock()

    @property
    def frozen(self) -> bool:
        """FREEZE was sent to the guest that is attached, and no THAW was answered since."""
        link = self._session.link
        return link is not None and self._frozen is not None and self._frozen() is link

    async def backup(
        self, during: Callable[[], Awaitable[object]] | None = None, luns: Sequence[Lun] = ()
    ) -> BackupReport:
        """Check, freeze, await ``during()``, thaw, report completion, in a real host's order.

        The guest is thawed however this ends: by a failed freeze, by an error in ``during``, or by
        cancellation, which waits for the guest's answers then. A second backup waits for the first.
        ``luns``: the disks of the backup, which FREEZE names.
        """
        async with self._one_backup:
            flags = await self.check()
            device_flags = await self.direct_mapped()
            began = time.perf_counter()
            try:
                await self.freeze(luns)
                if during is not None:
                    await during()
            except BaseException:
                if self.frozen:
                    await self._thaw_after_failure()
                raise
            await uninterrupted(self.thaw())
            seconds = time.perf_counter() - began
            await self.complete()
            return BackupReport(flags, device_flags, seconds)

    async def check(self) -> int:
        """Can the guest be backed up now? Its capability flags."""
        return await self._flags(VssOperation.HOT_BACKUP)

    async def direct_mapped(self) -> int:
        """Flags about directly mapped devices."""
        return await self._flags(VssOperation.GET_DM_INFO)

    async def freeze(self, luns: Sequence[Lun] = ()) -> None:
        """Freeze all file systems; the caller must :meth:`thaw`, even if this fails or is cancelled.

        ``luns``: the disks of the backup, 260 at most (ValueError); a guest may freeze only what is on them.
        """
        body = VssFreeze(luns=tuple(luns)).encode()
        self._session.require()
        assert self._session.link is not None
        self._frozen = weakref.ref(self._session.link)
        await self._ask(VssOperation.FREEZE, body, self._session.timing.freeze)

    async def thaw(self) -> None:
        """Thaw all file systems."""
        await self._ask(VssOperation.THAW, VssFlags(VssOperation.THAW).encode())
        self._frozen = None

    async def complete(self) -> None:
        """Tell the guest that the backup is done."""
        await self._flags(VssOperation.BACKUP_COMPLETE)

    async def _thaw_after_failure(self) -> None:
        try:
            await uninterrupted(self.thaw())
        except (HostError, MessageError) as error:  # not raised: the first failure says more
            self._session.tell(EventKind.FAILED, f"not thawed: {error}")

    async def _flags(self, operation: VssOperation) -> int:
        reply = await self._ask(operation, VssFlags(operation).encode())
        return self._session.parse(operation.name, reply, VssFlags.decode).flags

    async def _ask(self, operation: VssOperation, body: bytes, limit: float | None = None) -> Frame:
        reply = await self._session.ask(operation.name, body, limit=limit)
        if reply.status:
            raise GuestStatusError("vss", operation.name, reply.status)
        return reply
