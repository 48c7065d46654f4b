# SPDX-License-Identifier: Apache-2.0
"""A file for netplan.  Lists of several files are joined there: another file's addresses stay."""

from __future__ import annotations

from typing import Final

from hvring.guest.ip_backends.order import Order

DIRECTORY: Final = "/etc/netplan"
MODE: Final = 0o600


def file_name(order: Order) -> str:
    """The last file counts where a word can have one value only."""
    return f"99-hvring-{order.adapter.name}.yaml"


def text(order: Order) -> str:
    """Nothing in it can be taken for anything but a text: addresses have quotation marks, names have no odd letters."""
    lines = [
        "network:",
        "  version: 2",
        "  ethernets:",
        f'    "{order.adapter.name}":',
        "      match:",
        f'        name: "{order.adapter.name}"',
        f'        macaddress: "{order.adapter.mac}"',
        f"      dhcp4: {str(order.dhcp).lower()}",
        f"      accept-ra: {str(not order.of(6)[0]).lower()}",
    ]
    if order.addresses:
        lines += ["      addresses:", *(f'        - "{one}"' for one in order.addresses)]
    if order.dns:
        lines += ["      nameservers:", "        addresses:", *(f'          - "{one}"' for one in order.dns)]
    if order.gateways:
        lines.append("      routes:")
    for version in (4, 6):
        for n, gateway in enumerate(order.of(version)[1]):
            lines += [
                f'        - to: "{"0.0.0.0/0" if version == 4 else "::/0"}"',
                f'          via: "{gateway}"',
                f"          metric: {1000 + n if n else 100}",
            ]
            if order.is_off_link(gateway):
                lines.append("          on-link: true")
    return "\n".join([*lines, ""])
