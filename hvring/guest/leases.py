# SPDX-License-Identifier: Apache-2.0
"""Whether an IPv4 address was leased, by what the DHCP clients of Linux leave behind.

A lease without an end, as Azure gives to every machine, makes an address that looks like one set by hand: the kernel
does not tell them apart.  Who asked for it does: most clients mark the routes that came with it (see
:func:`hvring.guest.network.ip_info`), and all of them keep files.
"""

from __future__ import annotations

import glob
import re
import socket
from collections.abc import Iterator
from typing import Final

from hvring.guest.regular import read_regular

_DHCLIENT_LEASE: Final = re.compile(r"^lease\s*\{(.*?)^\}", re.MULTILINE | re.DOTALL)
_YIADDR: Final = slice(16, 20)  # "your address" in a DHCP message


def is_leased(
    index: int, name: str, addresses: set[str], *, run: str = "/run", state: str = "/var/lib"
) -> bool:
    """Whether a client's lease for this interface is for one of its ``addresses``.

    Looks at the files of systemd-networkd, NetworkManager, dhclient and dhcpcd.
    """
    return any(
        leased in addresses
        for leases in (
            _assignments(f"{run}/systemd/netif/leases/{index}", "ADDRESS"),
            _assignments(f"{run}/NetworkManager/devices/{index}", "ip_address"),
            _of_network_manager(name, state),
            _of_dhclient(name, state),
            _of_dhcpcd(name, state),
        )
        for leased in leases
    )


def _of_network_manager(name: str, state: str) -> Iterator[str]:
    for path in _named(f"{state}/NetworkManager/internal-*-", name, ".lease"):
        yield from _assignments(path, "ADDRESS")


def _of_dhclient(name: str, state: str) -> Iterator[str]:
    for path in sorted(
        glob.glob(f"{state}/dhc[pl]*/*.lease*") + glob.glob(f"{state}/NetworkManager/dhclient-*.lease")
    ):
        newest = ""
        for lease in _DHCLIENT_LEASE.findall(_read(path).decode(errors="replace")):
            words = dict(re.findall(r'^\s*(interface|fixed-address)\s+"?([^";]+)"?;', lease, re.MULTILINE))
            if words.get("interface") == name:
                newest = words.get("fixed-address", "")  # they are appended
        yield newest


def _of_dhcpcd(name: str, state: str) -> Iterator[str]:
    for path in (f"{state}/dhcpcd/{name}.lease", f"{state}/dhcpcd5/{name}.lease"):
        address = _read(path)[_YIADDR]
        if len(address) == 4:
            yield socket.inet_ntoa(address)


def _named(before: str, name: str, after: str) -> list[str]:
    return sorted(glob.glob(f"{before}{glob.escape(name)}{after}"))


def _assignments(path: str, key: str) -> Iterator[str]:
    for line in _read(path).decode(errors="replace").splitlines():
        name, equals, value = line.partition("=")
        if equals and name.strip() == key:
            yield value.strip().partition("/")[0]


def _read(path: str) -> bytes:
    """The end of a file, to which dhclient appends for months; b"" if there is none that can be read."""
    try:
        return read_regular(path, last=True)
    except OSError:
        return b""
