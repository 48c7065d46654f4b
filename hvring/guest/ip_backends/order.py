# SPDX-License-Identifier: Apache-2.0
"""A host's wish for an adapter, checked: addresses that are some, masks that are some, an adapter that is there."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from hvring.errors import EffectError
from hvring.guest.network import IpInfo
from hvring.guest.regular import read_regular
from hvring.reasons import Reason
from hvring.status import Status

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface

    Ip = IPv4Address | IPv6Address
    IpWithNet = IPv4Interface | IPv6Interface

#: Entries of each list and family, as the binary form has room for.
_MOST: Final = 64
_MOST_GATEWAYS: Final = 5

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,14}")
_MAC: Final = re.compile(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}")
_FOR_NO_HOST: Final = ("is_unspecified", "is_multicast", "is_loopback")


class BadSettingsError(EffectError):
    """What the host wants makes no sense; nothing was written."""

    def __init__(self, message: str) -> None:
        super().__init__(message, Status.INVALID_ARG, Reason.BAD_REQUEST)


@dataclass(frozen=True, slots=True)
class Adapter:
    """One that is there; ``mac`` is lower case with colons."""

    name: str
    mac: str


@dataclass(frozen=True, slots=True)
class Order:
    """How ``adapter`` is to be set up; ``dhcp`` is for IPv4.  Without an IPv6 address routers are listened to."""

    adapter: Adapter
    dhcp: bool
    addresses: tuple[IpWithNet, ...]
    gateways: tuple[Ip, ...]
    dns: tuple[Ip, ...]

    def of(self, version: int) -> tuple[list[IpWithNet], list[Ip], list[Ip]]:
        """Addresses, gateways and name servers of IPv4 or IPv6."""
        return (
            [one for one in self.addresses if one.version == version],
            [one for one in self.gateways if one.version == version],
            [one for one in self.dns if one.version == version],
        )

    def is_off_link(self, gateway: Ip) -> bool:
        """Whether no address has this router in its network."""
        return not (
            gateway.is_link_local
            or any(gateway in one.network for one in self.addresses if one.version == gateway.version)
        )


def find_adapter(guid: str, *, net: str = "/sys/class/net") -> Adapter | None:
    """The adapter with this VMBus instance GUID, with or without braces.  BadSettingsError for one of an odd kind."""
    wanted = guid.strip().strip("{}").lower()
    try:
        names = sorted(os.listdir(net))
    except OSError:
        return None
    for name in names:
        if _attribute(f"{net}/{name}/device/device_id").strip("{}").lower() == wanted:
            mac = _attribute(f"{net}/{name}/address").lower()
            if not (_NAME.fullmatch(name) and _MAC.fullmatch(mac)):
                raise BadSettingsError(f"no file can name the adapter {name!r} with the address {mac!r}")
            return Adapter(name, mac)
    return None


def order(adapter: Adapter, wish: IpInfo) -> Order:
    """All of it checked.  Raises BadSettingsError, which quotes the host."""
    texts = _entries("addresses", wish.addresses)
    masks = _entries("subnets", wish.subnets)
    if len(texts) != len(masks):
        raise BadSettingsError(f"{len(texts)} addresses with {len(masks)} subnets")
    addresses = tuple(_address(*pair) for pair in zip(texts, masks, strict=True))
    gateways = tuple(_ip("gateway", text) for text in _entries("gateways", wish.gateways))
    dns = tuple(
        _ip("name server", text, ("is_unspecified", "is_multicast")) for text in _entries("dns", wish.dns)
    )
    if not addresses and not wish.dhcp:
        raise BadSettingsError("neither DHCP nor an address: that would cut this machine off")
    for what, found, most in (
        ("addresses", addresses, _MOST),
        ("gateways", gateways, _MOST_GATEWAYS),
        ("name servers", dns, _MOST),
    ):
        for version in (4, 6):
            count = sum(1 for one in found if one.version == version)
            if count > most:
                raise BadSettingsError(f"{count} {what} of IPv{version}, {most} are the most")
        if len(set(found)) < len(found):
            raise BadSettingsError(f"one of the {what} comes twice")
    for gateway in gateways:
        if gateway.version == 4 and not wish.dhcp and not any(one.version == 4 for one in addresses):
            raise BadSettingsError(f"the gateway {gateway} without an IPv4 address")
        if any(gateway == one.ip for one in addresses):
            raise BadSettingsError(f"the gateway {gateway} is this machine")
    return Order(adapter, wish.dhcp, addresses, gateways, dns)


def _entries(what: str, text: str) -> list[str]:
    found = [entry.strip(" ") for entry in text.split(";")]
    found = [entry for entry in found if entry]
    if len(found) > 2 * _MOST:
        raise BadSettingsError(f"{len(found)} {what}")
    return found


def _ip(what: str, text: str, unfit: Sequence[str] = _FOR_NO_HOST) -> Ip:
    from ipaddress import ip_address

    try:
        if "%" in text:
            raise ValueError
        found = ip_address(text)
    except ValueError:
        raise BadSettingsError(f"{text!r:.60} is no {what}") from None
    # One of IPv4 in the clothes of IPv6 is no address of a wire, and passes for none of these.
    is_mapped = found.version == 6 and found.ipv4_mapped is not None
    if is_mapped or any(getattr(found, name) for name in unfit) or str(found) == "255.255.255.255":
        raise BadSettingsError(f"{text!r:.60} can be no {what}")
    return found


def _address(text: str, mask: str) -> IpWithNet:
    from ipaddress import ip_interface

    ip = _ip("address", text)
    bits = _prefix(mask, ip.version)
    if bits is None or not 0 < bits <= ip.max_prefixlen:
        raise BadSettingsError(f"{mask!r:.60} is no subnet for {ip}")
    found = ip_interface(f"{ip}/{bits}")
    if (
        ip.version == 4
        and bits < 31
        and ip in (found.network.network_address, found.network.broadcast_address)
    ):
        raise BadSettingsError(f"{found} is its network's own address")
    return found


def _prefix(mask: str, version: int) -> int | None:
    """Bits of "255.255.255.0" for IPv4, and of "/64" or "64" for both."""
    digits = mask.removeprefix("/")
    if digits.isascii() and digits.isdecimal() and len(digits) <= 3:
        return int(digits)
    from ipaddress import AddressValueError, IPv4Address

    try:
        number = int(IPv4Address(mask))
    except AddressValueError:
        return None
    bits = number.bit_count()
    return bits if version == 4 and number == (0xFFFFFFFF << (32 - bits)) & 0xFFFFFFFF else None


def _attribute(path: str) -> str:
    try:
        return read_regular(path, 256).decode("ascii", "replace").strip()
    except OSError:
        return ""
