# SPDX-License-Identifier: Apache-2.0
"""Data exchange: five pools of pairs and the adapters' IP settings (PROTOCOL §4.4)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from hvring.errors import EffectBusyError, EffectError, LyingLengthError, MessageError, ShortMessageError
from hvring.ic import kvp_ip, text
from hvring.ic.frame import MessageType, Request, Status
from hvring.ic.kvp import (
    FRAMEWORKS,
    KEY_FIELD,
    VALUE_FIELD,
    VERSIONS,
    KvpDelete,
    KvpEnumerate,
    KvpGet,
    KvpItem,
    KvpOperation,
    KvpPool,
    KvpSet,
    KvpValue,
    header,
)
from hvring.ic.kvp_ip import ADDRESS_FIELD, GATEWAY_FIELD, SETTINGS, KvpIpInfo
from hvring.ic.negotiate import Negotiated
from hvring.services.intake import Intake
from hvring.services.service import Answer, Counters, Later, Reply

if TYPE_CHECKING:
    from hvring.guest.pools import KvpStore


PATIENCE: Final = 2.0  # seconds for other programs to be done with a pool; hosts wait longer (PROTOCOL §3.5)
RETRY: Final = 0.01  # seconds until the next look whether they are


class Kvp:
    """Answers from a :class:`~hvring.guest.pools.KvpStore`.

    A store that is in use (EffectBusyError) is asked again for up to ``PATIENCE`` seconds, without holding up anybody
    else.
    """

    name = "kvp"

    def __init__(self, store: KvpStore, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._monotonic = monotonic
        self._intake = Intake(MessageType.KVP, FRAMEWORKS, VERSIONS)
        self._pair_operations = {
            KvpOperation.GET: self._get,
            KvpOperation.SET: self._set,
            KvpOperation.DELETE: self._delete,
            KvpOperation.ENUMERATE: self._enumerate,
        }

    @property
    def counters(self) -> Counters:
        return self._intake.counters

    @property
    def negotiated(self) -> Negotiated | None:
        return self._intake.negotiated

    @property
    def last_error(self) -> Exception | None:
        return self._intake.last_error

    def receive(self, payload: bytes) -> Answer:
        return self._intake.receive(payload, self._exchange)

    def reset(self) -> None:
        self._intake.negotiated = None

    def deadline(self) -> float | None:
        return None

    def tick(self) -> None:
        pass

    def _exchange(self, request: Request) -> Answer:
        body = request.body
        operation, pool = header(body)
        if operation in self._pair_operations:
            return self._pairs(KvpOperation(operation), pool, request, self._monotonic() + PATIENCE)
        if operation == KvpOperation.GET_IP:
            return self._get_ip(request)
        if operation == KvpOperation.SET_IP:
            # Changing the network is nothing that a host may do unasked: refused, but with the truth about
            # whether there is such an adapter.
            known = self._store.adapter(kvp_ip.adapter(body))
            return Reply(request.answer(Status.NOT_SUPPORTED if known else Status.NOT_FOUND))
        self.counters.unknown_operation += 1
        return Reply(request.answer(Status.NOT_SUPPORTED))

    def _pairs(self, operation: KvpOperation, pool: int, request: Request, give_up_at: float) -> Answer:
        """The four operations on pairs; whatever goes wrong, NO_MORE_ITEMS is what hosts know."""
        try:
            if pool > KvpPool.AUTO_INTERNAL:
                raise LyingLengthError(f"there is no pool {pool}")
            answer = self._pair_operations[operation](request.body)
        except ShortMessageError:
            raise
        except MessageError:
            self.counters.lying += 1
        except (EffectError, ValueError) as error:
            if isinstance(error, EffectBusyError) and self._monotonic() < give_up_at:
                return Later(RETRY, lambda: self._pairs(operation, pool, request, give_up_at))
            self._intake.note(error)
        else:
            if answer is not None:
                return Reply(request.answer(body=answer))
        return Reply(request.answer(Status.NO_MORE_ITEMS))

    # Each of these returns the answer's body, or None when there is no such pair.

    def _get(self, body: bytes) -> bytes | None:
        asked = KvpGet.decode(body)
        value = self._store.get(asked.pool, asked.key)
        if value is None:
            return None
        return KvpValue(asked.pool, asked.key, text.cut(value, VALUE_FIELD)).encode()

    def _set(self, body: bytes) -> bytes | None:
        asked = KvpSet.decode(body)
        self._store.set(asked.pool, asked.key, str(asked.value))
        return b""

    def _delete(self, body: bytes) -> bytes | None:
        asked = KvpDelete.decode(body)
        return b"" if self._store.delete(asked.pool, asked.key) else None

    def _enumerate(self, body: bytes) -> bytes | None:
        asked = KvpEnumerate.decode(body)
        if asked.pool == KvpPool.AUTO:
            pairs = self._store.automatic()
            pair = pairs[asked.index] if asked.index < len(pairs) else None
        else:
            pair = self._store.record(asked.pool, asked.index)
        if pair is None:
            return None
        # Other programs write pool files too, and their keys may be longer than the field: better cut than
        # an end of the list before the items behind it.
        key, value = text.cut(pair[0], KEY_FIELD), text.cut(pair[1], VALUE_FIELD)
        return KvpItem(asked.pool, asked.index, key, value).encode()

    def _get_ip(self, request: Request) -> Reply:
        body = request.body
        adapter = kvp_ip.adapter(body)
        info = self._store.ip_info(adapter)
        if info is None:
            return Reply(request.answer(Status.FAIL))
        settings = KvpIpInfo(
            KvpOperation.GET_IP,
            body[1],
            adapter,
            info.family,
            int(info.dhcp),
            text.cut(info.addresses, ADDRESS_FIELD),
            text.cut(info.subnets, ADDRESS_FIELD),
            text.cut(info.gateways, GATEWAY_FIELD),
            text.cut(info.dns, ADDRESS_FIELD),
        ).encode()
        return Reply(request.answer(body=body[:SETTINGS] + settings[SETTINGS:]))
