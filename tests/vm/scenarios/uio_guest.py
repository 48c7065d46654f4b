# SPDX-License-Identifier: Apache-2.0
"""In the guest: probe."""

from __future__ import annotations

import ctypes
import os
import sys
import time

from hvring.transport.binding import Binder
from hvring.transport.uevents import Uevents
from hvring.transport.uio import open_channel


def inotify() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(os.O_NONBLOCK)
    hb = "/sys/bus/vmbus/devices/fd149e91-82e0-4a7d-afa6-2a4166cbd7c0"
    for p in (
        "/sys/class/uio",
        hb,
        "/sys/bus/vmbus/drivers/uio_hv_generic",
        "/sys/bus/vmbus/drivers/hv_utils",
        "/dev",
    ):
        print(p, libc.inotify_add_watch(fd, p.encode(), 0xFFF))
    with Uevents() as events:
        print(Binder().bind("heartbeat"))
        time.sleep(0.5)
        print("uevents", events._socket.recv(4096))
        print("uevents", events.drain())
    try:
        data = os.read(fd, 65536)
    except BlockingIOError:
        data = b""
    while data:
        import struct

        wd, mask, cookie, n = struct.unpack_from("iIII", data)
        print("inotify wd", wd, hex(mask), data[16 : 16 + n].rstrip(b"\0"))
        data = data[16 + n :]


def echo(name: str) -> None:
    try:
        with open_channel(name) as channel:
            print("open", channel, channel.recheck_every, channel.tx.size, flush=True)
            try:
                while True:
                    channel.wait()
                    for packet in channel:
                        channel.send(packet.payload, transaction_id=packet.transaction_id)
            finally:
                print(channel.stats(), flush=True)
    except Exception as error:
        print(type(error).__name__, error, flush=True)


globals()[sys.argv[1]](*sys.argv[2:])
