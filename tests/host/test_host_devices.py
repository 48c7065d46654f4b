# SPDX-License-Identifier: Apache-2.0
"""Devices of any class: what the author of a driver tries it against."""

from __future__ import annotations

import asyncio
import os
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from scripted_guest import RawGuest

from hvring.errors import ChannelRescindedError, EndpointError, PacketTooLargeError
from hvring.events import EventKind
from hvring.host import DeviceChannel, NotReadyError, VirtualHost, echo
from hvring.host.device import _ENOUGH
from hvring.host.testing import running_host
from hvring.transport.virtual import connect, connect_async
from hvring.vmbus import BY_NAME
from hvring.vmbus.classes import DYNAMIC_MEMORY

OWN = "c0ffee00-0000-4000-8000-000000000001"
EXAMPLE = Path(__file__).parents[2] / "examples" / "dynamic_memory.py"


def received(channel):
    """What is next, with a limit."""
    assert channel.wait(30)
    packet = channel.recv()
    assert packet is not None
    return packet


def test_an_echo_gives_back_payload_id_and_type(tmp_path):
    path = str(tmp_path / "sock")
    with running_host(path, [], devices={OWN: echo}) as host, connect(path, OWN) as channel:
        host.do(host.wait_ready(OWN))
        for number in range(2000):
            channel.send(number.to_bytes(8, "little"), transaction_id=number, timeout=30)
            answer = received(channel)
            assert (answer.transaction_id, int.from_bytes(answer.payload, "little")) == (number, number)
        assert host.status()["devices"] == {OWN: "ready"}
        assert host.violations == []


async def test_a_handler_speaks_first_and_its_end_takes_the_channel_back(path):
    events = []

    async def greet(device: DeviceChannel) -> None:
        await device.send(b"welcome!", transaction_id=7)
        assert (await device.receive()).payload == b"goodbye!"

    async with VirtualHost(path, [], devices={OWN.upper(): greet}, on_event=events.append) as host:
        for _ in range(2):
            channel = await connect_async(path, OWN)
            greeting = await asyncio.to_thread(received, channel)
            assert (greeting.payload, greeting.transaction_id) == (b"welcome!", 7)
            channel.send(b"goodbye!")
            await host.wait_detached(OWN)
            with pytest.raises(ChannelRescindedError):
                channel.wait(30)
        assert host.violations == []
    assert [e.kind for e in events] == [EventKind.ATTACHED, EventKind.DETACHED] * 2
    assert {e.service for e in events} == {OWN}


async def test_a_handler_that_fails_is_told_and_the_host_goes_on(path):
    events = []

    async def broken(device: DeviceChannel) -> None:
        raise ZeroDivisionError("oops")

    async with VirtualHost(path, ["kvp"], devices={OWN: broken}, on_event=events.append) as host:
        channel = await connect_async(path, OWN)
        await host.wait_detached(OWN)
        channel.close()
        assert [e.detail for e in events if e.kind is EventKind.FAILED] == [
            "the device's handler failed: ZeroDivisionError('oops')"
        ]


async def test_a_handler_sees_the_end_and_may_tidy_up(path):
    ends = []

    async def tidy(device: DeviceChannel) -> None:
        async for packet in device:
            ends.append(packet.payload)
        with pytest.raises(NotReadyError, match="the guest detached"):
            await device.receive()
        with pytest.raises(NotReadyError):
            await device.send(b"too late")
        ends.append("tidy")

    async with VirtualHost(path, [], devices={OWN: tidy}) as host:
        channel = await connect_async(path, OWN)
        channel.send(b"the last")
        channel.close()
        while "tidy" not in ends:
            await asyncio.sleep(0)
        assert ends == [b"the last", "tidy"]
        await host.wait_detached(OWN)


async def test_a_handler_that_never_ends_is_cancelled_when_the_guest_left(path, monkeypatch):
    monkeypatch.setattr("hvring.host.device._LAST_WORDS", 0.01)
    cancelled = asyncio.Event()

    async def deaf(device: DeviceChannel) -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            cancelled.set()

    async with VirtualHost(path, [], devices={OWN: deaf}):
        (await connect_async(path, OWN)).close()
        await cancelled.wait()


async def test_a_driver_that_sends_more_than_is_taken_finds_its_ring_full(path):
    gates = asyncio.Event()
    seen = []

    async def slow(device: DeviceChannel) -> None:
        await gates.wait()
        async for packet in device:
            seen.append(packet.transaction_id)

    async with VirtualHost(path, []) as host:
        host.offer(OWN, slow, ring_size=8192)
        channel = await connect_async(path, OWN)
        count = 10 * _ENOUGH

        def send() -> None:
            for number in range(count):
                channel.send(b"x" * 64, transaction_id=number, timeout=30)

        sending = asyncio.create_task(asyncio.to_thread(send))
        device = host._slots[OWN].tenant
        while not device.link._paused:
            await asyncio.sleep(0)
        assert len(device._channel._packets) < _ENOUGH + 64
        gates.set()
        await sending
        while len(seen) < count:
            await asyncio.sleep(0)
        assert seen == list(range(count))
        assert host.violations == []
        channel.close()


async def test_a_corrupted_ring_of_a_device_ends_the_channel_and_not_the_host(path):
    async with VirtualHost(path, [], devices={OWN: echo}) as host:
        async with RawGuest(path, OWN) as guest:
            struct.pack_into("<I", guest.memory, 0, 3)
            guest.signal()
            await host.wait_detached(OWN)
        assert [v.service for v in host.violations] == [OWN]
        channel = await connect_async(path, OWN)
        await host.wait_ready(OWN)
        channel.close()


async def test_a_device_is_unticked_and_ticked_like_a_service(path):
    async with VirtualHost(path, [], devices={OWN: echo}) as host:
        channel = await connect_async(path, OWN)
        await host.set_offered(OWN, False)
        with pytest.raises(ChannelRescindedError):
            channel.wait(30)
        assert host.status()["devices"] == {OWN: "off"}
        with pytest.raises(EndpointError, match="not offered at present"):
            await connect_async(path, OWN)
        await host.set_offered(OWN, True)
        (await connect_async(path, OWN)).close()


async def test_a_driver_may_wait_for_a_device_that_is_offered_later(path):
    events = []
    async with VirtualHost(path, [], on_event=events.append) as host:
        waiting = asyncio.create_task(connect_async(path, OWN, wait=True, timeout=None))
        while not any(e.kind is EventKind.REFUSED for e in events):
            await asyncio.sleep(0)
        host.offer(OWN, echo)
        (await waiting).close()


async def test_too_large_a_packet_is_the_handlers_own_error(path):
    async def large(device: DeviceChannel) -> None:
        with pytest.raises(PacketTooLargeError):
            await device.send(bytes(8192))
        await device.send(b"fine")

    async with VirtualHost(path, []) as host:
        host.offer(OWN, large, ring_size=8192)
        channel = await connect_async(path, OWN)
        assert (await asyncio.to_thread(received, channel)).payload.startswith(b"fine")
        channel.close()


@pytest.mark.parametrize(
    ("class_guid", "arguments", "complaint"),
    [
        ("floppy", {}, "no GUID"),
        (BY_NAME["kvp"].class_guid, {}, "the service kvp, which this host has itself"),
        (OWN, {"instance": "x"}, "no GUID"),
        (OWN, {"ring_size": 4096}, "ring_size 4096"),
        (OWN, {"ring_size": 10_000}, "ring_size 10000"),
    ],
)
def test_what_cannot_be_offered_is_refused_in_words(path, class_guid, arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        VirtualHost(path).offer(class_guid, echo, **arguments)


def test_a_class_is_offered_once(path):
    with pytest.raises(ValueError, match="offered already"):
        VirtualHost(path, devices={OWN: echo}).offer(OWN, echo)


# ---------------------------------------------------------------------------------- the example of a driver


class Balloon:
    """Dynamic memory as a host has it, as far as the example goes: agrees to 1.0, and counts reports."""

    def __init__(self) -> None:
        self.reports: list[tuple[int, int]] = []
        self.asked: list[tuple[int, int]] = []
        self.third = threading.Event()

    async def serve(self, channel: DeviceChannel) -> None:
        async for packet in channel:
            kind, _size, number = struct.unpack_from("<HHI", packet.payload)
            if kind == 1:
                minor, major = struct.unpack_from("<HH", packet.payload, 8)
                self.asked.append((major, minor))
                await channel.send(struct.pack("<HHIQ", 2, 16, number, (major, minor) == (1, 0)))
            elif kind == 3:
                await channel.send(struct.pack("<HHIQ", 4, 16, number, 1))
            elif kind == 5:
                self.reports.append(struct.unpack_from("<QQ", packet.payload, 8))
                if len(self.reports) == 3:
                    self.third.set()


def run(*words: str) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(EXAMPLE.parents[1])}
    return subprocess.Popen(
        [sys.executable, "-W", "error", str(EXAMPLE), *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_dynamic_memory_example_runs_against_a_virtual_host(tmp_path):
    path, balloon = str(tmp_path / "sock"), Balloon()
    with running_host(path, [], devices={DYNAMIC_MEMORY: balloon.serve}) as host:
        driver = run("--virtual", path, "--interval", "0.05")
        assert balloon.third.wait(30)
        assert host.violations == []
    out, err = driver.communicate(timeout=30)
    assert (driver.returncode, err) == (1, "dynamic_memory: the host took the channel back\n")
    assert out.startswith("version 1.0\nreported ")
    assert balloon.asked == [(2, 0), (1, 0)]
    assert all(0 < available < 2**40 for available, _ in balloon.reports)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [(["--virtual", "/nonexistent/sock"], "no virtual host at"), ([], "dynamic_memory: ")],
)
def test_the_example_says_in_one_line_why_it_cannot_run(words, complaint):
    if not words and Path("/sys/bus/vmbus").exists():
        pytest.skip("this is a Hyper-V guest, where the example would run")
    out, err = (driver := run(*words)).communicate(timeout=30)
    assert (driver.returncode, out, err.count("\n")) == (1, "", 1)
    assert complaint in err


def test_the_example_says_so_when_the_host_does_not_agree(tmp_path):
    path = str(tmp_path / "sock")

    async def stubborn(channel: DeviceChannel) -> None:
        async for packet in channel:
            kind, _size, number = struct.unpack_from("<HHI", packet.payload)
            await channel.send(struct.pack("<HHIQ", kind + 1, 16, number, 0))

    with running_host(path, [], devices={DYNAMIC_MEMORY: stubborn}):
        out, err = (driver := run("--virtual", path)).communicate(timeout=30)
    assert (driver.returncode, out) == (1, "")
    assert err == "dynamic_memory: the host knows none of these versions\n"
