# SPDX-License-Identifier: Apache-2.0
"""Data exchange over ``/dev/vmbus/hv_kvp``: 7432 bytes each way (PROTOCOL §10.4.1)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from hvring.errors import LyingLengthError, MessageError, ShortMessageError, UnknownOperationError
from hvring.ic.fields import pack
from hvring.ic.hv_utils import texts
from hvring.ic.hv_utils.dialect import PATIENCE
from hvring.ic.kvp import KvpDelete, KvpEnumerate, KvpGet, KvpItem, KvpOperation, KvpSet, KvpValue
from hvring.ic.kvp_ip import KvpIpInfo
from hvring.ic.unreadable import Unreadable
from hvring.status import Status

Message = KvpGet | KvpSet | KvpDelete | KvpEnumerate | KvpIpInfo | Unreadable

SIZE: Final = 7432
KEY: Final = 512
VALUE: Final = 2048
REGISTER: Final = 100
_REGISTER_OLD: Final = 4  # how kernels may answer it
REGISTRATION: Final = bytes([REGISTER]).ljust(SIZE, b"\0")

_HEAD: Final = struct.Struct("<BB2x")
_SIZES: Final = struct.Struct("<III")  # behind the head: type, sizes of key and value with their NULs
_ASKED_AT: Final = 16  # of GET and SET: the key
_SET_AT: Final = _ASKED_AT + KEY
_INDEX: Final = struct.Struct("<I")
_DELETE: Final = struct.Struct("<I512s")
_IP: Final = struct.Struct("<256sBB2048s2048s1024s2048s")
_STATUS: Final = struct.Struct("<I")

# A GET is answered where an ENUMERATE is: the kernel looks nowhere else for a value.
_KEY_AT: Final = 20
_VALUE_AT: Final = 532
_IP_AT: Final = 4


def registered(answer: bytes) -> str:
    """The version that hv_utils calls itself, such as "3.1"."""
    if len(answer) != SIZE or answer[0] not in (REGISTER, _REGISTER_OLD):
        raise MessageError(f"hv_utils answers a registration with {len(answer)} bytes, {answer[:4].hex()}")
    return texts.unpack(answer[4 : 4 + KEY])


def decode(message: bytes) -> Message:
    """What the host asked for, as far as the kernel tells."""
    operation, pool = message[:2].ljust(2, b"\0")
    try:
        if len(message) != SIZE:
            kind = ShortMessageError if len(message) < SIZE else LyingLengthError
            raise kind(f"hv_utils hands out {len(message)} bytes for data exchange, {SIZE} belong there")
        read = _READ.get(operation)
        if read is None:
            raise UnknownOperationError(f"there is no KVP operation {operation}")
        return read(pool, message)
    except MessageError as error:
        return Unreadable(operation, error)


def _get(pool: int, message: bytes) -> KvpGet:
    return KvpGet(pool, texts.unpack(message[_ASKED_AT:_SET_AT]))


def _delete(pool: int, message: bytes) -> KvpDelete:
    return KvpDelete(pool, texts.unpack(_DELETE.unpack_from(message, _HEAD.size)[1]))


def _enumerate(pool: int, message: bytes) -> KvpEnumerate:
    return KvpEnumerate(pool, *_INDEX.unpack_from(message, _HEAD.size))


def _get_ip(pool: int, message: bytes) -> KvpIpInfo:
    """In which nothing but the adapter need make sense."""
    return KvpIpInfo(KvpOperation.GET_IP, pool, texts.unpack(_IP.unpack_from(message, _IP_AT)[0]))


def _set_ip(pool: int, message: bytes) -> KvpIpInfo:
    adapter, family, dhcp, *lists = _IP.unpack_from(message, _IP_AT)
    addresses, subnets, gateways, dns = map(texts.unpack, lists)
    return KvpIpInfo(
        KvpOperation.SET_IP,
        pool,
        texts.unpack(adapter),
        family,
        dhcp,
        addresses,
        subnets,
        gateways,
        dns,
    )


def _set(pool: int, message: bytes) -> KvpSet:
    _, _, value_size = _SIZES.unpack_from(message, _HEAD.size)
    key, value = message[_ASKED_AT:_SET_AT], message[_SET_AT : _SET_AT + VALUE]
    if value_size == 0:  # an empty text has 1
        raise MessageError("the kernel hands out no values but texts and numbers of types 4 and 8")
    return KvpSet(pool, texts.unpack_whole(key, KEY - 1), texts.unpack_whole(value, VALUE - 1))


_READ: Final[dict[int, Callable[[int, bytes], Message]]] = {
    KvpOperation.GET: _get,
    KvpOperation.SET: _set,
    KvpOperation.DELETE: _delete,
    KvpOperation.ENUMERATE: _enumerate,
    KvpOperation.GET_IP: _get_ip,
    KvpOperation.SET_IP: _set_ip,
}


def encode(asked: Message, status: int, message: object) -> bytes:
    """A status, and with status 0 the value, the record or the settings."""
    out = bytearray(SIZE)
    _STATUS.pack_into(out, 0, status)
    if status != Status.OK:
        return bytes(out)
    match asked, message:
        case (KvpSet() | KvpDelete(), None):
            pass
        case (KvpGet(), KvpValue(value=value)):
            _put(out, _VALUE_AT, str(value), VALUE)
        case (KvpEnumerate(), KvpItem(key=key, value=value)):
            _put(out, _KEY_AT, key, KEY)
            _put(out, _VALUE_AT, str(value), VALUE)
        case (KvpIpInfo(operation=KvpOperation.GET_IP), KvpIpInfo() as info):
            out[_IP_AT : _IP_AT + _IP.size] = _settings(info)
        case (KvpIpInfo(operation=KvpOperation.SET_IP), None):
            pass
        case _:  # status 0 alone would make an empty pair of it
            raise ValueError(f"{type(message).__name__} is no answer to {type(asked).__name__}")
    return bytes(out)


def _put(out: bytearray, at: int, text: str, field: int) -> None:
    raw = texts.start(text, field)
    out[at : at + len(raw)] = raw


def _settings(info: KvpIpInfo) -> bytes:
    return pack(
        _IP,
        "IP settings",
        texts.pack(info.adapter, 256),
        info.family,
        info.dhcp,
        texts.pack(info.addresses, 2048),
        texts.pack(info.subnets, 2048),
        texts.pack(info.gateways, 1024),
        texts.pack(info.dns, 2048),
    )


def patience(asked: Message) -> float:  # noqa: ARG001
    """Seconds within which to answer."""
    return PATIENCE
