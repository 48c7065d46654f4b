# SPDX-License-Identifier: Apache-2.0
"""Exchange data with the guest (PROTOCOL §4.4)."""

from __future__ import annotations

from typing import Final

from hvring.errors import ReplyError
from hvring.host.errors import GuestStatusError
from hvring.host.session import Session
from hvring.ic import Frame, Status, kvp_ip, kvp_ip_binary
from hvring.ic.kvp import (
    KvpDelete,
    KvpEnumerate,
    KvpGet,
    KvpItem,
    KvpOperation,
    KvpPool,
    KvpSet,
    KvpValue,
    ValueType,
)
from hvring.ic.kvp_ip import KvpIpInfo

MAX_ITEMS: Final = 100_000  # a guest whose pool has more is taken to enumerate without end,
MAX_LETTERS: Final = 1 << 25  # and so is one with more letters in all keys and values together

Items = list[tuple[str, str | int]]


class KvpVerbs:
    """The administrator's verbs for data exchange; pools are those of KvpPool or their numbers.

    A status other than "no more items", which is an answer and not an error, raises GuestStatusError.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    async def get(self, key: str, pool: int = KvpPool.EXTERNAL) -> str | int | None:
        """The value of ``key``, None when the guest does not have it."""
        request = f"GET {key!r}"
        reply = await self._ask(request, KvpGet(pool, key).encode())
        if reply is None:
            return None
        return self._session.parse(request, reply, KvpValue.decode).value

    async def set(
        self, key: str, value: str | int, pool: int = KvpPool.EXTERNAL, *, value_type: int | None = None
    ) -> None:
        """Store text, or a number of 32 bits if it fits and else of 64 (or of ``value_type``).

        Raises ValueError when key or value do not fit (255 and 1023 UTF-16 units).
        """
        if value_type is None:
            value_type = ValueType.SZ
            if isinstance(value, int):
                value_type = ValueType.U32 if 0 <= value < 2**32 else ValueType.U64
        request = f"SET {key!r}"
        if await self._ask(request, KvpSet(pool, key, value, value_type).encode()) is None:
            raise GuestStatusError("kvp", request, Status.NO_MORE_ITEMS)

    async def remove(self, key: str, pool: int = KvpPool.EXTERNAL) -> bool:
        """Remove ``key``. False: the guest does not have it."""
        return await self._ask(f"DELETE {key!r}", KvpDelete(pool, key).encode()) is not None

    async def enumerate(self, pool: int, index: int) -> tuple[str, str | int] | None:
        """The key and value at ``index``, None at the end of the pool."""
        request = f"ENUMERATE pool {pool:d} index {index}"
        reply = await self._ask(request, KvpEnumerate(pool, index).encode())
        if reply is None:
            return None
        item = self._session.parse(request, reply, KvpItem.decode)
        return item.key, item.value

    async def list(self, pool: int = KvpPool.EXTERNAL) -> Items:
        """All keys and values of a pool, in the guest's order."""
        items: Items = []
        letters = 0
        while (item := await self.enumerate(pool, len(items))) is not None:
            items.append(item)
            letters += len(item[0]) + len(str(item[1]))
            if len(items) > MAX_ITEMS or letters > MAX_LETTERS:
                self._session.violation(f"ENUMERATE pool {pool:d}", f"no end after {len(items) - 1} items")
                raise ReplyError(f"kvp: the enumeration of pool {pool:d} does not end")
        return items

    async def automatic(self) -> dict[str, str | int]:
        """What the guest says about itself (pool 2)."""
        return dict(await self.list(KvpPool.AUTO))

    async def get_ip(self, mac: str) -> KvpIpInfo:
        """The settings of the adapter with this MAC address."""
        return await self._ip(KvpIpInfo(KvpOperation.GET_IP, KvpPool.GUEST, mac.upper()))

    async def set_ip(self, settings: KvpIpInfo) -> None:
        """Change an adapter's settings; the adapter is named by its ``{guid}``."""
        await self._ip(settings)

    async def _ip(self, settings: KvpIpInfo) -> KvpIpInfo:
        is_binary = self._session.require().version >= kvp_ip.BINARY
        request = f"{KvpOperation(settings.operation).name} {settings.adapter}"
        body = kvp_ip_binary.encode(settings) if is_binary else settings.encode()
        reply = await self._session.ask(request, body)
        if reply.status:
            raise GuestStatusError("kvp", request, reply.status)
        return self._session.parse(request, reply, kvp_ip_binary.decode if is_binary else KvpIpInfo.decode)

    async def _ask(self, request: str, body: bytes) -> Frame | None:
        reply = await self._session.ask(request, body)
        if reply.status == Status.NO_MORE_ITEMS:
            return None
        if reply.status:
            raise GuestStatusError("kvp", request, reply.status)
        return reply
