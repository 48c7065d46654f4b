# SPDX-License-Identifier: Apache-2.0
"""The same settings in the binary form of message version 5.0 (PROTOCOL §4.4.6), as :class:`KvpIpInfo` has them."""

from __future__ import annotations

import struct
from enum import IntEnum
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import Final

from hvring.errors import LyingLengthError, MessageError, ShortMessageError
from hvring.ic import text
from hvring.ic.fields import pack
from hvring.ic.kvp_ip import ADAPTER_FIELD, IP_SIZE, KvpIpInfo

BINARY_END: Final = 3716  # hosts send as many bytes as in the text form

ADDRESSES: Final = 64  # and subnets, and name servers, of each family
GATEWAYS: Final = 5

_ADAPTER: Final = slice(28, 28 + ADAPTER_FIELD)
_HEAD: Final = struct.Struct("<BBH6I256sBBH")
_FIELDS: Final = (  # (bytes of an entry, entries), from B+288
    (4, ADDRESSES),
    (16, ADDRESSES),
    (4, ADDRESSES),
    (4, ADDRESSES),
    (4, GATEWAYS),
    (16, GATEWAYS),
    (4, ADDRESSES),
    (16, ADDRESSES),
)
_ORIGINS: Final = struct.Struct("<128H")


class Origin(IntEnum):
    """Where an address came from."""

    UNKNOWN = 0
    DHCP = 1
    STATIC = 2


def adapter(body: bytes) -> str:
    """The adapter alone.  Raises as :func:`decode`."""
    if len(body) < BINARY_END:
        raise ShortMessageError(f"binary KVP IP settings of {len(body)} bytes")
    return text.unpack(body[_ADAPTER])


def with_adapter_of(request: bytes, body: bytes) -> bytes:
    """The body, and in it the adapter as the request has it."""
    return body[: _ADAPTER.start] + request[_ADAPTER] + body[_ADAPTER.stop :]


def decode(body: bytes) -> KvpIpInfo:
    """IPv4 before IPv6 in each list.

    Raises ShortMessageError below 3716 bytes, LyingLengthError for more entries than there is room for, MessageError
    for broken text and for prefixes that are none.
    """
    name = adapter(body)
    operation, pool, _, v4, v6, gateways4, gateways6, dns4, dns6, _, family, dhcp, _ = _HEAD.unpack_from(body)
    counts = (v4, v6, v4, v6, gateways4, gateways6, dns4, dns6)
    at = _HEAD.size
    lists: list[list[str]] = []
    for number, ((size, room), count) in enumerate(zip(_FIELDS, counts, strict=True)):
        if count > room:
            raise LyingLengthError(f"{count} entries in a list of {room}")
        entries = [body[at + n * size : at + (n + 1) * size] for n in range(count)]
        lists.append([_prefix(entry) if number == 3 else _shown(entry) for entry in entries])
        at += size * room
    addresses, subnets, gateways, dns = (";".join(lists[n] + lists[n + 1]) for n in range(0, 8, 2))
    return KvpIpInfo(operation, pool, name, family, dhcp, addresses, subnets, gateways, dns)


def encode(info: KvpIpInfo) -> bytes:
    """As many bytes as in the text form; entries beyond a list's room are left out.

    Raises ValueError when the adapter or a number does not fit, or an entry is no address.
    """
    addresses, subnets = _entries(info.addresses), _entries(info.subnets)
    pairs = list(zip(addresses, subnets, strict=True))
    raw: list[list[bytes]] = []
    for version in (AF_INET, AF_INET6):
        ours = [pair for pair in pairs if _family(pair[0]) == version]
        raw.append([_packed(version, address) for address, _ in ours])
        raw.append([_mask(version, mask) for _, mask in ours])
        for listed in (info.gateways, info.dns):
            raw.append([_packed(version, one) for one in _entries(listed) if _family(one) == version])
    v4, masks, gateways4, dns4, v6, prefixes, gateways6, dns6 = raw
    lists = [
        entries[:room]
        for entries, (_, room) in zip(
            (v4, v6, masks, prefixes, gateways4, gateways6, dns4, dns6), _FIELDS, strict=True
        )
    ]
    head = pack(
        _HEAD,
        "binary IP settings",
        info.operation,
        info.pool,
        0,
        *(len(lists[n]) for n in (0, 1, 4, 5, 6, 7)),
        text.pack(info.adapter, ADAPTER_FIELD),
        info.family,
        info.dhcp,
        0,
    )
    origins = [Origin.DHCP if info.dhcp else Origin.STATIC] * len(lists[0]) + [Origin.UNKNOWN] * len(lists[1])
    fields = (
        b"".join(one).ljust(size * room, b"\0") for one, (size, room) in zip(lists, _FIELDS, strict=True)
    )
    body = head + b"".join(fields) + _ORIGINS.pack(*origins, *[0] * (128 - len(origins)))
    return body.ljust(IP_SIZE, b"\0")


def _entries(listed: str) -> list[str]:
    return [entry for entry in listed.split(";") if entry]


def _family(address: str) -> int:
    return AF_INET6 if ":" in address else AF_INET


def _packed(family: int, address: str) -> bytes:
    try:
        return inet_pton(family, address)
    except OSError:
        raise ValueError(f"{address!r:.60} is no address") from None


def _mask(family: int, mask: str) -> bytes:
    if family == AF_INET:
        return _packed(AF_INET, mask)
    return int(mask.removeprefix("/")).to_bytes(4, "little")


def _shown(raw: bytes) -> str:
    return inet_ntop(AF_INET if len(raw) == 4 else AF_INET6, raw)


def _prefix(raw: bytes) -> str:
    bits = int.from_bytes(raw, "little")
    if bits > 128:
        raise MessageError(f"a prefix of {bits} bits")
    return f"/{bits}"
