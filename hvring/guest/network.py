# SPDX-License-Identifier: Apache-2.0
"""Addresses, gateways and name servers of this machine (PROTOCOL §4.4.4, §4.4.6)."""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from hvring.guest import leases, netlink
from hvring.guest.regular import read_regular

_IFINFOMSG: Final = struct.Struct("=BxHiII")  # family, type, index, flags, change mask
_IFADDRMSG: Final = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
# Family, dst_len, src_len, tos, table, protocol, scope, type, flags.
_RTMSG: Final = struct.Struct("=BBBBBBBBI")
_RTNEXTHOP: Final = struct.Struct("=HBBi")  # length, flags, hops, index

_IFLA_ADDRESS: Final = 1
_IFLA_IFNAME: Final = 3
_IFF_LOOPBACK: Final = 8
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_IFA_FLAGS: Final = 8
_IFA_F_PERMANENT: Final = 0x80
_RTA_OIF: Final = 4
_RTA_GATEWAY: Final = 5
_RTA_MULTIPATH: Final = 9
_RTA_TABLE: Final = 15
_RTA_VIA: Final = 18
_RT_TABLE_MAIN: Final = 254
_RTN_UNICAST: Final = 1
_RTPROT_DHCP: Final = 16
_RTM_F_CLONED: Final = 0x200

#: UTF-16 units in the fields of a GET_IP reply, less one for the NUL (PROTOCOL §4.4.1).
_LIST_UNITS: Final = 1023
_GATEWAY_UNITS: Final = 511

RESOLV_CONFS: Final = ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf")


@dataclass(frozen=True, slots=True)
class IpInfo:
    """One adapter as GET_IP reports it; each text is a ";" list (PROTOCOL §4.4.6)."""

    family: int  #: 0 none, 1 IPv4, 2 IPv6, 3 both
    dhcp: bool
    addresses: str
    subnets: str
    gateways: str
    dns: str


@dataclass(frozen=True, slots=True)
class Address:
    """One address: AF_INET or AF_INET6; not ``permanent`` if it has a lifetime, as from DHCP."""

    family: int
    text: str
    prefix: int
    permanent: bool

    @property
    def subnet(self) -> str:
        """A dotted mask for IPv4, "/64" for IPv6, as Linux writes them."""
        if self.family == socket.AF_INET6:
            return f"/{self.prefix}"
        return socket.inet_ntoa((0xFFFFFFFF << (32 - self.prefix) & 0xFFFFFFFF).to_bytes(4, "big"))


@dataclass(frozen=True, slots=True)
class Interface:
    """One network interface; ``mac`` is upper case with colons, "" where there is none."""

    index: int
    name: str
    mac: str
    loopback: bool
    addresses: tuple[Address, ...]


def interfaces() -> tuple[Interface, ...]:
    """All interfaces in the kernel's order, IPv4 addresses before IPv6. Raises EffectError."""
    addresses: dict[int, list[Address]] = {}
    for (family, prefix, flags, _, index), more in netlink.dump(netlink.RTM_GETADDR, _IFADDRMSG):
        text = _address_text(family, more.get(_IFA_LOCAL) or more.get(_IFA_ADDRESS) or b"")
        if text is None or prefix > (32 if family == socket.AF_INET else 128):
            continue
        all_flags = int.from_bytes(more.get(_IFA_FLAGS, b""), sys.byteorder) | flags
        addresses.setdefault(index, []).append(
            Address(family, text, prefix, bool(all_flags & _IFA_F_PERMANENT))
        )
    return tuple(
        Interface(
            index,
            more.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace"),
            more.get(_IFLA_ADDRESS, b"").hex(":").upper(),
            bool(flags & _IFF_LOOPBACK),
            tuple(addresses.get(index, ())),
        )
        for (_, _, index, flags, _), more in netlink.dump(netlink.RTM_GETLINK, _IFINFOMSG)
    )


def gateways() -> tuple[tuple[int, str], ...]:
    """(interface index, address) of every default route in the main table. Raises EffectError."""
    found: list[tuple[int, str]] = []
    for head, more in netlink.dump(netlink.RTM_GETROUTE, _RTMSG):
        family, destination_bits, _, _, table, _, _, kind, flags = head
        if _RTA_TABLE in more:
            (table,) = struct.unpack("=I", more[_RTA_TABLE])
        if destination_bits or kind != _RTN_UNICAST or table != _RT_TABLE_MAIN or flags & _RTM_F_CLONED:
            continue
        for index, hop in _hops(more):
            text = _gateway_text(family, hop)
            if text is not None and (index, text) not in found:
                found.append((index, text))
    return tuple(found)


def dhcp_interfaces() -> set[int]:
    """Indexes of the interfaces with an IPv4 route that a DHCP client made.  Raises EffectError."""
    return {
        index
        for (family, _, _, _, _, protocol, _, _, _), more in netlink.dump(netlink.RTM_GETROUTE, _RTMSG)
        if family == socket.AF_INET and protocol == _RTPROT_DHCP
        for index, _ in _hops(more)
    }


def dns_servers(files: Iterable[str] = RESOLV_CONFS) -> tuple[str, ...]:
    """Name servers from the first file that names one which is not a stub on this machine."""
    stubs: tuple[str, ...] = ()
    for path in files:
        servers = tuple(_name_servers(path))
        if any(not server.startswith("127.") and server != "::1" for server in servers):
            return servers
        stubs = stubs or servers
    return stubs


def ip_info(mac: str) -> IpInfo | None:
    """What GET_IP tells about the adapter with this MAC; None if there is none. Raises EffectError.

    Several interfaces may share a MAC (a synthetic one and its virtual function): the first with an
    address counts.
    """
    matching = [i for i in interfaces() if i.mac and i.mac == mac.strip().upper()]
    if not matching:
        return None
    chosen = next((i for i in matching if i.addresses), matching[0])
    addresses = () if chosen.loopback else chosen.addresses
    families = {a.family for a in addresses}
    texts: list[str] = []
    subnets: list[str] = []
    for address in addresses:
        if max(_joined([*texts, address.text]), _joined([*subnets, address.subnet])) > _LIST_UNITS:
            break
        texts.append(address.text)
        subnets.append(address.subnet)
    return IpInfo(
        family=(socket.AF_INET in families) | (socket.AF_INET6 in families) << 1,
        dhcp=_is_by_dhcp(chosen),
        addresses=";".join(texts),
        subnets=";".join(subnets),
        gateways=_terminated((text for index, text in gateways() if index == chosen.index), _GATEWAY_UNITS),
        dns=_terminated(dns_servers(), _LIST_UNITS),
    )


def _is_by_dhcp(interface: Interface) -> bool:
    """Whether an IPv4 address of the interface is leased; a lease may have no end (every one of Azure's)."""
    addresses = [a for a in interface.addresses if a.family == socket.AF_INET]
    if not addresses or interface.loopback:
        return False
    return (
        any(not a.permanent for a in addresses)
        or interface.index in dhcp_interfaces()
        or leases.is_leased(interface.index, interface.name, {a.text for a in addresses})
    )


def adapter_exists(guid: str, *, net: str = "/sys/class/net") -> bool:
    """Whether an interface has this VMBus instance GUID, with or without braces (PROTOCOL §4.4.6)."""
    wanted = guid.strip().strip("{}").lower()
    try:
        names = os.listdir(net)
    except OSError:
        return False
    for name in names:
        try:
            with open(f"{net}/{name}/device/device_id", encoding="utf-8", errors="replace") as device_id:
                if device_id.read().strip().strip("{}").lower() == wanted:
                    return True
        except OSError:
            continue
    return False


def _address_text(family: int, raw: bytes) -> str | None:
    if (family, len(raw)) in ((socket.AF_INET, 4), (socket.AF_INET6, 16)):
        return socket.inet_ntop(family, raw)
    return None


def _hops(route: dict[int, bytes]) -> Iterator[tuple[int, dict[int, bytes]]]:
    """(interface index, attributes) of each next hop."""
    if _RTA_OIF in route:
        yield struct.unpack("=i", route[_RTA_OIF])[0], route
    rest = route.get(_RTA_MULTIPATH, b"")
    while len(rest) >= _RTNEXTHOP.size:
        length, _, _, index = _RTNEXTHOP.unpack_from(rest)
        if not _RTNEXTHOP.size <= length <= len(rest):
            return
        yield index, netlink.attributes(rest[_RTNEXTHOP.size : length])
        rest = rest[(length + 3) & ~3 :]


def _gateway_text(family: int, hop: dict[int, bytes]) -> str | None:
    if _RTA_VIA in hop and len(hop[_RTA_VIA]) > 2:  # an IPv4 route through an IPv6 router
        return _address_text(struct.unpack_from("=H", hop[_RTA_VIA])[0], hop[_RTA_VIA][2:])
    return _address_text(family, hop.get(_RTA_GATEWAY, b""))


def _name_servers(path: str) -> Iterator[str]:
    try:
        lines = read_regular(path).decode(errors="replace").split("\n")
    except OSError:
        return
    for line in lines:
        words = line.split()
        if len(words) < 2 or words[0] != "nameserver":
            continue
        text = words[1].partition("%")[0]
        family = socket.AF_INET6 if ":" in text else socket.AF_INET
        try:
            yield socket.inet_ntop(family, socket.inet_pton(family, text))
        except (OSError, ValueError):
            continue


def _joined(texts: list[str]) -> int:
    return len(";".join(texts))


def _terminated(texts: Iterable[str], limit: int) -> str:
    """Each text followed by ";", as Linux does for gateways and DNS, cut at a whole entry."""
    joined = ""
    for text in texts:
        if len(joined) + len(text) + 1 > limit:
            break
        joined += f"{text};"
    return joined
