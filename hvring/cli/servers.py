# SPDX-License-Identifier: Apache-2.0
"""Who serves a service now, and by which way."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from hvring.guest.holders import Holder, holders, names
from hvring.transport.sysfs import OPENED, UIO_DRIVER, Bus, Device
from hvring.vmbus import BY_NAME


@dataclass(frozen=True, slots=True)
class Server:
    """``way``: "uio", "utils", "kernel" or None, as the requests go.  ``node``: what must be open for it.

    ``holders``: who has it open, as far as this user may see; ``is_open``: whether somebody has, None: not known.
    """

    way: str | None
    node: str | None = None
    holders: Sequence[Holder] = ()
    is_open: bool | None = None

    def __str__(self) -> str:
        if self.way == "kernel":
            return "the kernel"
        if self.way is None or self.is_open is False:
            return "nobody"
        return f"{names(self.holders) or '?'} by {self.way}"


def server(bus: Bus, device: Device, proc: str = "/proc") -> Server:
    """Who serves this device."""
    if device.driver == UIO_DRIVER:
        node = bus.node(device)
        found = node_holders(bus, node, proc) if node is not None else []
        return Server("uio", node, found, device.state == OPENED)
    if device.driver is None:
        return Server(None)
    facts = BY_NAME.get(device.service or "")
    if facts is None or not facts.node:
        return Server("kernel")
    node = bus.utils_node(facts.name)
    found = node_holders(bus, node, proc)
    # The kernel does not say whether somebody has it open: root sees everybody who might.
    is_open = bool(found) or (False if os.geteuid() == 0 else None)
    return Server("utils", node if os.path.exists(node) else None, found, is_open)


def node_holders(bus: Bus, node: str, proc: str) -> list[Holder]:
    """Who has ``node`` open, which may be mounted elsewhere here than where the program sees it."""
    below = os.path.relpath(node, bus.dev if node.startswith(f"{bus.dev}/") else "/dev")
    return holders({os.path.join(bus.dev, below), os.path.join("/dev", below)}, proc)
