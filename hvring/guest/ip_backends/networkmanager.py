# SPDX-License-Identifier: Apache-2.0
"""A keyfile for NetworkManager, which reads none that others may read."""

from __future__ import annotations

from typing import Final

from hvring.guest.ip_backends.order import Order

DIRECTORY: Final = "/etc/NetworkManager/system-connections"
MODE: Final = 0o600


def file_name(order: Order) -> str:
    return f"hvring-{order.adapter.name}.nmconnection"


def text(order: Order) -> str:
    """The profile is preferred to others for the adapter, such as those that are made by themselves."""
    lines = [
        "[connection]",
        f"id=hvring-{order.adapter.name}",
        "type=ethernet",
        f"interface-name={order.adapter.name}",
        "autoconnect-priority=100",
        "",
        "[ethernet]",
        f"mac-address={order.adapter.mac.upper()}",
    ]
    for version in (4, 6):
        addresses, gateways, dns = order.of(version)
        if version == 4 and order.dhcp:
            method = "auto"
        elif addresses:
            method = "manual"
        else:
            method = "disabled" if version == 4 else "auto"
        lines += ["", f"[ipv{version}]", f"method={method}"]
        lines += [f"address{n}={one}" for n, one in enumerate(addresses, 1)]
        if gateways:
            # The one that a keyfile can name goes with an address; the others are routes of lesser worth.
            anywhere = "0.0.0.0/0" if version == 4 else "::/0"
            if addresses:
                lines.append(f"gateway={gateways[0]}")
            rest = gateways[1:] if addresses else gateways
            lines += [f"route{n}={anywhere},{one},{1000 + n}" for n, one in enumerate(rest, 1)]
        if dns:
            lines.append("dns=" + "".join(f"{one};" for one in dns))
    return "\n".join([*lines, ""])
