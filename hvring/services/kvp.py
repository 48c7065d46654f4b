# SPDX-License-Identifier: Apache-2.0
"""Data exchange: five pools of pairs and the adapters' IP settings (PROTOCOL §4.4)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from hvring.errors import EffectError, MessageError, ShortMessageError, UnknownOperationError
from hvring.events import EventKind, Facts
from hvring.guest.network import IpInfo
from hvring.guest.records import proper
from hvring.ic import _kvp, kvp_ip, text
from hvring.ic.frame import HEADER, MessageType, Request, Version
from hvring.ic.kvp import (
    FRAMEWORKS,
    KEY_FIELD,
    VALUE_FIELD,
    VERSIONS,
    KvpDelete,
    KvpEnumerate,
    KvpGet,
    KvpOperation,
    KvpPool,
    KvpSet,
    header,
)
from hvring.ic.kvp_ip import ADDRESS_FIELD, GATEWAY_FIELD, SETTINGS, KvpIpInfo
from hvring.ic.unreadable import Unreadable
from hvring.pending import Pending, soonest, then
from hvring.reasons import Reason
from hvring.services.base import IntegrationService, Response, Result, inherited
from hvring.services.held import when_thawed
from hvring.status import Status

if TYPE_CHECKING:
    from hvring.guest.pools import KvpStore

Pair = KvpGet | KvpSet | KvpDelete | KvpEnumerate


@dataclass(frozen=True, slots=True)
class UnusableSettings:
    """A SET_IP of which only the adapter makes sense."""

    known: KvpIpInfo
    error: MessageError


KvpMessage = Pair | KvpIpInfo | UnusableSettings | Unreadable

_DONE: Final = Response()
_NOT_FOUND: Final = Response(Status.NO_MORE_ITEMS)
_AUTO: Final = KvpPool.AUTO  # a member's name is looked up anew each time that it is asked of its class
_LAST_POOL: Final = KvpPool.AUTO_INTERNAL
_PREPARE_AGAIN: Final = 60.0  # seconds
_LOOK_AGAIN: Final = 1.0  # seconds, for a thaw


class UnusablePairError(MessageError):
    """A request about a pair that there cannot be; hosts know "no more items" for it, as from Linux."""


class Kvp(IntegrationService[KvpMessage]):
    """Answers from a :class:`~hvring.guest.pools.KvpStore`, which may take its time and limits it itself."""

    name = "kvp"
    kind = MessageType.KVP
    frameworks = FRAMEWORKS
    versions: ClassVar[tuple[Version, ...]] = VERSIONS
    in_place = True

    def __init__(self, store: KvpStore, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._store = store
        self._monotonic = monotonic
        self._is_prepared = False
        self._prepare_at: float | None = None  # after it failed

    def adopt(self, fresh: Kvp) -> None:
        self._store = inherited(fresh._store, self._store)
        self._is_prepared, self._prepare_at = False, None
        self._prepare()

    def deadline(self) -> float | None:
        at = self._prepare_at
        return soonest(super().deadline(), None if at is None else max(0.0, at - self._monotonic()))

    def tick(self) -> None:
        self._prepare()
        super().tick()

    def decode(self, request: Request) -> KvpMessage:
        ordinary = _kvp.decode(request, HEADER)
        if ordinary is not None:
            return ordinary
        body = request.body
        operation, pool = header(body)
        decode = _PAIRS.get(operation)
        if decode is not None:
            try:
                return decode(body)
            except MessageError as error:
                return Unreadable(operation, error)
        if operation in (KvpOperation.GET_IP, KvpOperation.SET_IP):
            return self._decode_ip(operation, pool, body)
        raise UnknownOperationError(f"there is no KVP operation {operation}")

    def _decode_ip(self, operation: int, pool: int, body: bytes) -> KvpMessage:
        adapter, decode = kvp_ip.adapter, KvpIpInfo.decode
        if self._is_binary:
            from hvring.ic import kvp_ip_binary

            adapter, decode = kvp_ip_binary.adapter, kvp_ip_binary.decode
        # In a request for settings nothing but the adapter need make sense.
        known = KvpIpInfo(operation, pool, adapter(body))
        if operation == KvpOperation.GET_IP:
            return known
        try:
            return decode(body)
        except MessageError as error:
            return UnusableSettings(known, error)

    @property
    def _is_binary(self) -> bool:
        return self.negotiated is not None and self.negotiated.version >= kvp_ip.BINARY

    def handle(self, message: KvpMessage) -> Result:
        answer = _ANSWERS.get(type(message))
        if answer is not None:
            pair: Pair = message  # type: ignore[assignment]
            if not 0 <= pair.pool <= _LAST_POOL:
                raise UnusablePairError(f"there is no pool {pair.pool}")
            return answer(self, pair)
        if isinstance(message, Unreadable):
            if message.operation in _PAIRS and not isinstance(message.error, ShortMessageError):
                raise UnusablePairError(str(message.error)) from message.error
            raise message.error
        if isinstance(message, KvpIpInfo):
            return (
                self._get_ip(message) if message.operation == KvpOperation.GET_IP else self._set_ip(message)
            )
        assert isinstance(message, UnusableSettings)
        return self._set_ip(message.known, message.error)

    def encode(self, request: Request, response: Response) -> bytes | Request:
        message = response.message
        if message is None:
            return request.answer(response.status)
        body = _kvp.encode(message)
        if body is None:
            body = self._encode_ip(request, message) if isinstance(message, KvpIpInfo) else message.encode()
        return request.answer(response.status, body)

    def _encode_ip(self, request: Request, message: KvpIpInfo) -> bytes:
        if self._is_binary:
            from hvring.ic import kvp_ip_binary

            return kvp_ip_binary.with_adapter_of(request.body, kvp_ip_binary.encode(message))
        return request.body[:SETTINGS] + message.encode()[SETTINGS:]

    def refusal(self, error: Exception) -> int:
        if isinstance(error, UnusablePairError):
            return Status.NO_MORE_ITEMS
        if isinstance(error, UnknownOperationError):
            return Status.NOT_SUPPORTED
        return super().refusal(error)

    def _prepare(self) -> None:
        """Make the store ready for other programs, as soon as that works; nobody here depends on it."""
        now = self._monotonic()
        if self._is_prepared or (self._prepare_at is not None and now < self._prepare_at):
            return
        if self.is_frozen is not None and self.is_frozen():
            self._prepare_at = now + _LOOK_AGAIN
            return
        self._is_prepared = self.attempt("making the pools", self._make_ready)
        self._prepare_at = None if self._is_prepared else now + _PREPARE_AGAIN

    def _make_ready(self) -> None:
        stale = self._store.prepare()
        if stale is None:
            return
        facts: Facts = {"was": stale.was, "now": stale.now, "emptied": stale.emptied}
        if stale.emptied:
            self.record(EventKind.CHANGED, str(stale), **facts)
        else:
            self.record_failure(
                "knowing the pools", EffectError(str(stale), reason=Reason.STALE_POOLS), facts
            )

    def _get(self, asked: KvpGet) -> Result:
        def answer(value: str | None) -> Response:
            if value is None:
                return _NOT_FOUND
            return Response(message=_kvp.value(asked.pool, asked.key, _shown(value, VALUE_FIELD)))

        if asked.pool == _AUTO:  # what is listed can be got
            made_up = dict(self._store.automatic()).get(asked.key)
            if made_up is not None:
                return answer(made_up)
        return then(self._store.get(asked.pool, asked.key), answer)

    def _set(self, asked: KvpSet) -> Result:
        def answer(_: None) -> Response:
            self.tell(
                EventKind.CHANGED,
                f"the host set {asked.key!r} in pool {asked.pool}",
                key=asked.key,
                pool=int(asked.pool),
            )
            return _DONE

        frozen = self.is_frozen
        if frozen is not None and frozen():
            wait = when_thawed(frozen, lambda: self._store.set(asked.pool, asked.key, str(asked.value)))
            return then(wait, answer)
        return then(self._store.set(asked.pool, asked.key, str(asked.value)), answer)

    def _delete(self, asked: KvpDelete) -> Result:
        def answer(was_there: bool) -> Response:
            if not was_there:
                return _NOT_FOUND
            self.tell(
                EventKind.CHANGED,
                f"the host deleted {asked.key!r} in pool {asked.pool}",
                key=asked.key,
                pool=int(asked.pool),
            )
            return _DONE

        return then(when_thawed(self.is_frozen, lambda: self._store.delete(asked.pool, asked.key)), answer)

    def _enumerate(self, asked: KvpEnumerate) -> Result:
        def answer(pair: tuple[str, str] | None) -> Response:
            if pair is None:
                return _NOT_FOUND
            # Other programs write pool files too, and their keys may be longer than the field: better cut than
            # an end of the list before the items behind it.
            key, value = _shown(pair[0], KEY_FIELD), _shown(pair[1], VALUE_FIELD)
            return Response(message=_kvp.item(asked.pool, asked.index, key, value))

        if asked.pool == _AUTO:
            pairs = self._store.automatic()
            return answer(pairs[asked.index] if asked.index < len(pairs) else None)
        return then(self._store.record(asked.pool, asked.index), answer)

    def _get_ip(self, asked: KvpIpInfo) -> Result:
        info = self._store.ip_info(asked.adapter)
        return Response(Status.FAIL) if info is None else Response(message=_settings(asked, info))

    def _set_ip(self, asked: KvpIpInfo, unusable: MessageError | None = None) -> Result:
        """Whatever the settings, the host hears the truth about whether there is such an adapter."""
        facts: Facts = {
            "adapter": asked.adapter,
            "dhcp": bool(asked.dhcp),
            "addresses": asked.addresses,
            "subnets": asked.subnets,
            "gateways": asked.gateways,
            "dns": asked.dns,
        }
        what = "changing IP settings"

        def refused(error: Exception) -> Response:
            self.record_failure(what, error, facts, EventKind.REFUSED)
            return Response(self.refusal(error))

        def done(_: None) -> Response:
            self.worked(what)
            self.record(EventKind.CHANGED, f"the host changed the settings of {asked.adapter!r}", **facts)
            return Response()

        def go_on(step: Callable[[], Pending[None] | None]) -> Result:
            try:
                outcome = step()
            except Exception as error:  # of an embedder's own, too
                return refused(error)
            if isinstance(outcome, Pending):
                return Pending(lambda: go_on(outcome.resume), outcome.at, outcome.descriptor, outcome.cancel)
            return done(outcome)

        if not self._store.adapter(asked.adapter):
            missing = f"there is no adapter {asked.adapter!r}"
            return refused(EffectError(missing, Status.NOT_FOUND, Reason.BAD_REQUEST))
        if unusable is not None:
            broken = f"settings that cannot be read: {unusable}"
            return refused(EffectError(broken, Status.INVALID_ARG, Reason.BAD_REQUEST))
        wish = IpInfo(
            asked.family, bool(asked.dhcp), asked.addresses, asked.subnets, asked.gateways, asked.dns
        )
        return go_on(lambda: when_thawed(self.is_frozen, lambda: self._store.set_ip(asked.adapter, wish)))


class KvpWithBinaryIp(Kvp):
    """Agrees to message version 5.0 as well, which Linux does not: IP settings are binary then."""

    versions: ClassVar[tuple[Version, ...]] = (kvp_ip.BINARY, *VERSIONS)
    in_place = True


_PAIRS: Final[dict[int, Callable[[bytes], Pair]]] = {
    KvpOperation.GET: KvpGet.decode,
    KvpOperation.SET: KvpSet.decode,
    KvpOperation.DELETE: KvpDelete.decode,
    KvpOperation.ENUMERATE: KvpEnumerate.decode,
}


_ANSWERS: Final[dict[type, Callable[[Kvp, Any], Result]]] = {
    KvpGet: Kvp._get,
    KvpSet: Kvp._set,
    KvpDelete: Kvp._delete,
    KvpEnumerate: Kvp._enumerate,
}


def _shown(found: str, field: int) -> str:
    """What fits the field, under the name by which a store finds it again."""
    if found.isascii() and 2 * len(found) < field and "\0" not in found:
        return found
    return text.cut(proper(found), field)


def _settings(asked: KvpIpInfo, info: IpInfo) -> KvpIpInfo:
    return KvpIpInfo(
        KvpOperation.GET_IP,
        asked.pool,
        asked.adapter,
        info.family,
        int(info.dhcp),
        text.cut(info.addresses, ADDRESS_FIELD),
        text.cut(info.subnets, ADDRESS_FIELD),
        text.cut(info.gateways, GATEWAY_FIELD),
        text.cut(info.dns, ADDRESS_FIELD),
    )
