# SPDX-License-Identifier: Apache-2.0
"""A file for systemd-networkd, whose user must be able to read it."""

from __future__ import annotations

from typing import Final

from hvring.guest.ip_backends.order import Order

DIRECTORY: Final = "/etc/systemd/network"
MODE: Final = 0o644


def file_name(order: Order) -> str:
    """The first file that matches an adapter counts."""
    return f"05-hvring-{order.adapter.name}.network"


def text(order: Order) -> str:
    dhcp = order.dhcp
    lines = [
        "[Match]",
        f"Name={order.adapter.name}",
        f"MACAddress={order.adapter.mac}",
        "",
        "[Network]",
        f"DHCP={'ipv4' if dhcp else 'no'}",
        f"IPv6AcceptRA={'no' if order.of(6)[0] else 'yes'}",
    ]
    lines += [f"Address={one}" for one in order.addresses]
    lines += [f"DNS={one}" for one in order.dns]
    for version in (4, 6):
        for n, gateway in enumerate(order.of(version)[1]):
            lines += ["", "[Route]", f"Gateway={gateway}", f"Metric={1000 + n if n else 100}"]
            if order.is_off_link(gateway):
                lines.append("GatewayOnLink=yes")
    return "\n".join([*lines, ""])
