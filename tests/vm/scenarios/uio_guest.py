# SPDX-License-Identifier: Apache-2.0
"""In the guest: the parts of uio.py that need a program there. The first argument says which; JSON is the last line."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import json
import os
import struct
import sys
import threading
import time
from collections.abc import Callable

from hvring import Channel
from hvring.errors import HvringError, RingFullError
from hvring.transport import uevents
from hvring.transport.binding import Binder
from hvring.transport.kernels import Kernel
from hvring.transport.sysfs import Bus
from hvring.transport.uevents import Uevents
from hvring.transport.uio import UioDevice, open_channel, open_channel_async

_WRITE_INDEX, _MASK = 0, 8
_CREATED_DELETED_MOVED = 0x3C0


def say(**found: object) -> None:
    print(json.dumps(found), flush=True)


def word(act: Callable[[], object], good: str = "opened") -> str:
    """The kind of error that it ends with."""
    try:
        act()
    except HvringError as error:
        return type(error).__name__
    return good


def node(name: str) -> str:
    return str(Bus().node(Bus().find(name)))


def force(name: str) -> None:
    """Bind although the kernel is known to refuse."""
    try:
        Binder(kernel=Kernel("pretended", (6, 17, 0))).bind(name)
    except HvringError as error:
        print(type(error).__name__, error)


def open_(name: str) -> None:
    try:
        open_channel(name).close()
    except HvringError as error:
        print(type(error).__name__, error)


def news(name: str) -> None:
    """Bind, with inotify watches where the kernel makes and removes something, and a uevent socket."""
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_NONBLOCK)
    path = Bus().path(Bus().find(name).instance)
    for place in (path, "/sys/class/uio", "/sys/bus/vmbus/drivers/uio_hv_generic"):
        if libc.inotify_add_watch(watch, place.encode(), _CREATED_DELETED_MOVED) < 0:
            raise OSError(ctypes.get_errno(), place)
    with Uevents() as events:
        device = Binder().bind(name, force=True)
        came = events.drain()
    try:
        seen = [os.read(watch, 1 << 16).hex()]
    except BlockingIOError:
        seen = []
    say(driver=device.driver, uevents=came, inotify=seen)


def echo(name: str) -> None:
    with open_channel(name) as channel:
        _echo(channel)


def _echo(channel: Channel) -> None:
    stop = False
    while not stop:
        channel.wait()
        for packet in channel:
            stop = packet.payload.startswith(b"stop")
            if not stop:
                channel.send(packet.payload, transaction_id=packet.transaction_id)
    say(recheck_every=channel.recheck_every, **channel.stats())


def wait(name: str) -> None:
    """Opens a device that is bound only later; the safety look is off, so it takes a uevent."""
    uevents.LOOK_EVERY = 1000

    async def main() -> Channel:
        opening = asyncio.ensure_future(open_channel_async(name, wait=True, timeout=None))
        await asyncio.sleep(0)
        print("waiting", flush=True)
        return await opening

    with asyncio.run(main()) as channel:
        print("opened", flush=True)
        _echo(channel)


def facts(name: str) -> None:
    """What the plain device does."""
    with UioDevice(node(name)) as device:
        memory = device.map(0)
        rx = len(memory) // 2
        opened = memory[rx + _MASK]
        wrong = []
        for attempt in (
            lambda: os.write(device.fileno(), bytes(3)),
            lambda: os.write(device.fileno(), bytes(8)),
            lambda: os.read(device.fileno(), 3),
            lambda: os.read(device.fileno(), 8),
        ):
            try:
                attempt()
                wrong.append("taken")
            except OSError as error:
                wrong.append(errno.errorcode[error.errno])
        device.control(1)
        written_1 = memory[rx + _MASK]
        device.control(0)
        written_0 = memory[rx + _MASK]
        device.read()
        print("ready", flush=True)
        while struct.unpack_from("<I", memory, rx + _WRITE_INDEX)[0] == 0:
            pass  # the packet arrives, masked
        quiet = device.wait(0.3)
        struct.pack_into("<I", memory, rx + _MASK, 0)
        still_quiet = device.wait(0.3)
        memory.close()
    say(
        opened=bool(opened),
        wrong_sizes=wrong,
        write_0=written_0,
        write_1=written_1,
        quiet=quiet,
        still_quiet=still_quiet,
    )


def busy(name: str) -> None:
    """Others, while the device is open; and what the rings hold after each of three openings."""

    def again() -> None:
        open_channel(name).close()

    with open_channel(name) as channel:
        second = word(again)
        unbind = word(lambda: Binder().unbind(name))
        channel.send(b"left behind")
    after = word(again)
    descriptor = os.open(node(name), os.O_RDWR)
    foreign = word(again)
    os.close(descriptor)
    empty = []
    for _ in range(3):
        with open_channel(name) as channel:
            empty.append(channel.rx.available + channel.tx.size - channel.tx.free)
            channel.send(b"left behind")
    say(second=second, unbind=unbind, after=after, foreign=foreign, reopened=empty)


def fill(name: str, count: str, size: str) -> None:
    with open_channel(name) as channel:
        for n in range(int(count)):
            payload = struct.pack("<I", n).ljust(int(size), b"\0")
            try:
                channel.send(payload)
            except RingFullError:
                print("full", flush=True)
                channel.send(payload, timeout=None)
        while channel.tx.free < channel.tx.size:  # QEMU does not say when it took the last one (PROTOCOL §8)
            time.sleep(0.01)
        say(**channel.stats())


def late(name: str, count: str) -> None:
    """Reads only when told to, through /tmp/gate."""
    os.mkfifo("/tmp/gate")
    with open_channel(name) as channel:
        print("open", flush=True)
        with open("/tmp/gate") as gate:
            gate.read()
        got: list[int] = []
        while len(got) < int(count) and channel.wait(10):
            got += [struct.unpack_from("<I", packet.payload)[0] for packet in channel]
        in_order = len(got) if got == list(range(len(got))) else 0
        say(in_order=in_order, **channel.stats())


def taken(name: str) -> None:
    """Waits in three ways while the device is taken away."""
    path = node(name)
    with open_channel(name) as channel, UioDevice(path) as plain:
        ends: dict[str, str] = {}

        def wait_plain() -> None:
            ends["plain"] = word(plain.wait, "woken")

        thread = threading.Thread(target=wait_plain)
        thread.start()

        async def loop() -> None:
            gone = asyncio.get_running_loop().create_future()
            running = asyncio.get_running_loop()
            running.add_reader(channel.fileno(), lambda: gone.done() or gone.set_result(None))
            print("waiting", flush=True)
            await gone
            running.remove_reader(channel.fileno())

        def by_select() -> None:
            asyncio.run(loop())
            channel.arm()

        waiter = threading.Thread(target=lambda: ends.setdefault("wait", word(channel.wait, "woken")))
        waiter.start()
        ends["select"] = word(by_select, "armed")
        waiter.join()
        thread.join()
        ends["send"] = word(lambda: channel.send(b""), "sent")
        say(**ends)


{"open": open_}.get(sys.argv[1], globals().get(sys.argv[1]))(*sys.argv[2:])
