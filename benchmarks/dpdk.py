# SPDX-License-Identifier: Apache-2.0
"""DPDK's vmbus ring, out of the distribution's own static library, driven by dpdk.c."""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path

from measure import cache
from peers import FLAGS, HERE, Ring, Unavailable, kept, load, need, run

__all__ = ["Ring", "Unavailable", "built", "library"]

MEMBERS = ("bus_vmbus_vmbus_bufring.c.o", "bus_vmbus_vmbus_channel.c.o")


def built() -> Path:
    """dpdk.c linked with the driver's objects, built once per text of it.  Raises Unavailable with the reason."""
    path = kept("dpdk_peer", "dpdk.c", "peer_loops.h")
    if not path.exists():
        build(path)
    return path


def library() -> ctypes.CDLL:
    """The loops over DPDK's ring.  Raises Unavailable with the reason."""
    return load(built())


def build(target: Path) -> None:
    need("apt-get", "dpkg", "ar", "cc")
    folder = cache() / "dpdk"
    folder.mkdir(exist_ok=True)
    archives = list(folder.glob("usr/lib/*/librte_bus_vmbus.a"))
    if not archives:
        run(["apt-get", "download", "-q", "libdpdk-dev"], folder, 180)
        package = next(folder.glob("libdpdk-dev*.deb"))
        run(["dpkg", "-x", package.name, "."], folder)
        package.unlink()
        archives = list(folder.glob("usr/lib/*/librte_bus_vmbus.a"))
        if not archives:
            raise Unavailable(f"libdpdk-dev has no vmbus driver on {platform.machine()}")
    run(["ar", "x", str(archives[0]), *MEMBERS], folder)
    run(["cc", *FLAGS, "-o", str(target), str(HERE / "dpdk.c"), *MEMBERS], folder)
