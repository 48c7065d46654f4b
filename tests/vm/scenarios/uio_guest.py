# SPDX-License-Identifier: Apache-2.0
"""In the guest: the parts of uio.py that need a program there. The first argument says which; JSON is the last line."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import json
import mmap
import os
import select
import signal
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
from hvring.transport.subchannels import DeviceChannel, channels, map_rings, open_subchannel
from hvring.transport.sysfs import Bus
from hvring.transport.uevents import Uevents
from hvring.transport.uio import UioDevice, open_channel, open_channel_async

_WRITE_INDEX, _MASK = 0, 8
_CREATED_DELETED_MOVED = 0x3C0
_DATA = 4096  # behind the control page
_MAP_FIXED = 0x10


def say(**found: object) -> None:
    print(json.dumps(found), flush=True)


def word(act: Callable[[], object], good: str = "opened") -> str:
    """The kind of error that it ends with."""
    try:
        act()
    except HvringError as error:
        return type(error).__name__
    return good


def mapped(channel: DeviceChannel) -> str:
    """How mapping its rings through sysfs ends."""
    try:
        map_rings(channel).close()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "mapped"


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
    uevents.LOOK_EVERY = uevents.LOOK_RARELY = 1000

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


def ring(name: str) -> None:
    """The rings through sysfs."""
    bus = Bus()
    device = bus.find(name)
    (primary,) = channels(bus, device)
    closed = mapped(primary)
    with UioDevice(node(name)) as opened:
        memory, again = opened.map(0), map_rings(primary)
        rx = len(memory) // 2
        memory[_DATA : _DATA + 8] = b"from uio"
        again[rx + _DATA : rx + _DATA + 8] = b"from sys"
        same = again[_DATA : _DATA + 8] == b"from uio" and memory[rx + _DATA : rx + _DATA + 8] == b"from sys"
        file = os.open(primary.path + "/ring", os.O_RDWR)
        with mmap.mmap(file, _DATA, offset=_DATA) as page:
            offset = page[:8] == b"from uio"
        doubled = _doubled(file, rx + _DATA, rx - _DATA)
        os.close(file)
        memory.close()
        again.close()
    say(closed=closed, listed=primary.index, size=2 * rx, same=same, offset=offset, doubled=doubled)


def sub(name: str) -> None:
    """An echo on the primary and on the sub-channel that the host offers meanwhile."""
    bus = Bus()
    device = bus.find(name)
    with open_channel(name) as primary:
        print("alone", flush=True)
        while len(found := channels(bus, device)) < 2 or found[1].rings is None:
            time.sleep(0.05)
        print(found[1], flush=True)
        try:
            second = open_subchannel(name, found[1].relid)
        except HvringError as error:
            say(refused=str(error))
            return
        with second:
            busy = word(lambda: open_subchannel(name, found[1].relid).close())
            print("both", flush=True)
            stats = _echo_both(primary, second)
    closed = mapped(found[1])
    with open_channel(name):
        reopened = mapped(found[1])
    say(second=busy, closed=closed, reopened=reopened, **stats)


def _echo_both(primary: Channel, second: Channel) -> dict[str, object]:
    """Until one of them is told to stop; their statistics."""
    both = (primary, second)
    while True:
        for channel in both:
            for packet in channel:
                if packet.payload.startswith(b"stop"):
                    return {"primary": primary.stats(), "sub": second.stats()}
                channel.send(packet.payload, transaction_id=packet.transaction_id)
        if not any(channel.arm() for channel in both):
            select.select(both, (), ())


def _doubled(file: int, at: int, size: int) -> bool:
    """Map ``size`` bytes of ``file`` from ``at`` on twice in a row: what goes in at the end of one is in the other."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long)
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    start = libc.mmap(None, 2 * size, 0, flags, -1, 0)
    for half in (start, start + size):
        if (
            libc.mmap(half, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | _MAP_FIXED, file, at)
            != half
        ):
            return False
    text = b"a packet that wraps"
    ctypes.memmove(start + size - 8, text, len(text))
    found = ctypes.string_at(start + size, len(text) - 8) + ctypes.string_at(start + size - 8, 8)
    wrapped = ctypes.string_at(start, len(text) - 8) + ctypes.string_at(start + 2 * size - 8, 8)
    libc.munmap(start, 2 * size)
    return found == wrapped == text[8:] + text[:8]


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


def _reader_through_sysfs(name: str) -> tuple[int, int]:
    """A process that maps the rings, and reads there when the returned pipe has a byte."""
    bus = Bus()
    device = bus.find(name)
    memory = map_rings(channels(bus, device)[0])
    wait, look = os.pipe()
    child = os.fork()
    if not child:
        os.read(wait, 1)
        os._exit(memory[0] & 0)
    memory.close()
    return look, child


def taken(name: str) -> None:
    """Waits in three ways while the device is taken away."""
    path = node(name)
    with open_channel(name) as channel, UioDevice(path) as plain:
        ends: dict[str, str] = {}
        look, child = _reader_through_sysfs(name)

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
        os.write(look, b"!")
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        ends["sysfs"] = signal.Signals(-status).name if status < 0 else "read"
        say(**ends)


{"open": open_}.get(sys.argv[1], globals().get(sys.argv[1]))(*sys.argv[2:])
