# SPDX-License-Identifier: Apache-2.0
"""IP settings over data exchange, in the string form of message versions up to 4.0 (PROTOCOL §4.4.6)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntFlag
from typing import Final

from hvring.errors import ShortMessageError
from hvring.ic import text
from hvring.ic.fields import pack
from hvring.ic.frame import Version

BINARY: Final = Version(5, 0)  # from this message version on the settings are those of ``kvp_ip_binary``
IP_SIZE: Final = 7428
SETTINGS: Final = 258  # B+258: where the settings begin, behind the adapter's id
ADAPTER_FIELD: Final = 256
ADDRESS_FIELD: Final = 2048
GATEWAY_FIELD: Final = 1024

_IP: Final = struct.Struct("<BB256sBB2048s2048s1024s2048s")


class AddressFamily(IntFlag):
    """Which families the settings are for."""

    NONE = 0
    IPV4 = 1
    IPV6 = 2


def adapter(body: bytes) -> str:
    """The adapter alone: in a GET_IP request nothing else need make sense.  Raises as KvpIpInfo.decode."""
    if len(body) < IP_SIZE:
        raise ShortMessageError(f"KVP IP settings of {len(body)} bytes")
    return text.unpack(body[2:SETTINGS])


@dataclass(frozen=True, slots=True)
class KvpIpInfo:
    """GET_IP_INFO and SET_IP_INFO, both ways; lists are texts with ";" between or behind the entries.

    GET names the adapter by its MAC address in upper case with colons, SET by its ``{guid}``.
    """

    operation: int
    pool: int
    adapter: str
    family: int = AddressFamily.NONE
    dhcp: int = 0
    addresses: str = ""
    subnets: str = ""
    gateways: str = ""
    dns: str = ""

    def encode(self) -> bytes:
        """Raises ValueError when a text or a number does not fit."""
        return pack(
            _IP,
            "IP settings",
            self.operation,
            self.pool,
            text.pack(self.adapter, ADAPTER_FIELD),
            self.family,
            self.dhcp,
            text.pack(self.addresses, ADDRESS_FIELD),
            text.pack(self.subnets, ADDRESS_FIELD),
            text.pack(self.gateways, GATEWAY_FIELD),
            text.pack(self.dns, ADDRESS_FIELD),
        )

    @classmethod
    def decode(cls, body: bytes) -> KvpIpInfo:
        """Raises ShortMessageError below 7428 bytes, MessageError for broken text."""
        if len(body) < IP_SIZE:
            raise ShortMessageError(f"KVP IP settings of {len(body)} bytes")
        operation, pool, adapter, family, dhcp, *lists = _IP.unpack_from(body)
        addresses, subnets, gateways, dns = map(text.unpack, lists)
        return cls(operation, pool, text.unpack(adapter), family, dhcp, addresses, subnets, gateways, dns)
