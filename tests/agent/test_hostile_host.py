# SPDX-License-Identifier: Apache-2.0
"""A hostile host against an agent in its own process: random episodes, each from one seed.

``HVRING_FUZZ_SECONDS=600`` makes it long; ``HVRING_FUZZ_SEED=n`` begins with the episode of that seed.
"""

from __future__ import annotations

import gc
import json
import mmap
import os
import random
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "hostile"))

from hostile_requests import TYPES, Requests, spoil
from hostile_wire import Wire, readable

from hvring.errors import HvringError
from hvring.ic import Frame, Heartbeat, MessageType, NegotiateRequest, Version
from hvring.transport.endpoint import OpenRequest
from hvring.transport.virtual import Offer, connect
from hvring.vmbus import BY_NAME

SECONDS = float(os.environ.get("HVRING_FUZZ_SECONDS", "12"))
SEED = int(os.environ.get("HVRING_FUZZ_SEED", "1"))
TIMEOUT = 30.0  # seconds after which the agent counts as hanging
PROGRAM = Path(__file__).parents[1] / "hostile" / "hostile_agent.py"


class Opened:
    """The host's end of one channel."""

    def __init__(self, connection: socket.socket, service: str, size: int) -> None:
        self.connection, self.service = connection, service
        self.offer = Offer(BY_NAME[service], size)
        memory = self.offer.memory
        self.wire = Wire(memory, size, size, 0, self.offer.host_event, self.offer.guest_event)

    def answer(self) -> None:
        self.offer.answer(self.connection)

    def close(self) -> None:
        self.connection.close()
        self.offer.close()


class HostileHost:
    """Listens at both sockets of the agent; keeps one honest channel, and attacks the other six."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.waiting: dict[str, socket.socket] = {}
        self.listeners = {
            name: socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for name in ("attacked", "honest")
        }
        for name, listener in self.listeners.items():
            listener.bind(str(directory / f"{name}.sock"))
            listener.listen()
        self.agent = subprocess.Popen(
            [sys.executable, PROGRAM, directory], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.beats = 0
        self.honest = Opened(self.accept("honest")[1], "heartbeat", 8192)
        self.honest.answer()

    def accept(self, name: str) -> tuple[str, socket.socket]:
        assert readable(self.listeners[name].fileno(), TIMEOUT), f"the agent does not come to {name}"
        connection, _ = self.listeners[name].accept()
        connection.settimeout(TIMEOUT)
        return OpenRequest.decode(connection.recv(4096)).service, connection

    def connection(self, service: str) -> socket.socket:
        """Where the agent waits for this service to be offered."""
        while service not in self.waiting:
            name, connection = self.accept("attacked")
            if name in self.waiting:
                self.waiting[name].close()
            self.waiting[name] = connection
        return self.waiting.pop(service)

    def facts(self) -> dict:
        assert self.agent.poll() is None, f"the agent died: {self.agent.returncode}"
        self.agent.stdin.write("?\n")
        self.agent.stdin.flush()
        assert readable(self.agent.stdout.fileno(), TIMEOUT), "the agent hangs"
        return json.loads(self.agent.stdout.readline())

    def at_rest(self) -> dict:
        """Facts, once those who write files have taken back what was given up: nobody else waits for that."""
        give_up_at = time.monotonic() + TIMEOUT
        while (facts := self.facts())["ending"]:
            assert time.monotonic() < give_up_at, facts
        return facts

    def beat(self) -> None:
        """An exchange on the honest channel."""
        self.beats += 1
        wire = self.honest.wire
        assert wire.send(Frame(MessageType.HEARTBEAT, Heartbeat(self.beats).encode()).encode(), self.beats)
        answer = wire.wait(time.monotonic() + TIMEOUT)
        assert answer is not None, "the heartbeat is not answered any more"
        assert answer.transaction_id == self.beats
        assert Heartbeat.decode(answer.payload[28:]).sequence == self.beats + 1

    def close(self) -> None:
        for thing in (*self.waiting.values(), *self.listeners.values(), self.honest):
            thing.close()
        self.agent.stdin.close()
        try:
            assert self.agent.wait(TIMEOUT) == 0
        finally:
            self.agent.kill()
            self.agent.wait()
            self.agent.stdout.close()


class Episode:
    """One channel from its opening to its end; everything follows from the seed, but for the race of two processes."""

    def __init__(self, host: HostileHost, seed: int) -> None:
        self.host, self.chance = host, random.Random(seed)
        self.service = self.chance.choice(tuple(TYPES))
        self.lies = self.chance.choice((0.0, 0.0, 0.02, 0.3))  # how often the ring itself is broken
        self.spoils = self.chance.choice((0.0, 0.3, 1.0))  # how often a message is
        self.events = self.chance.random() < 0.2
        self.sent: dict[int, bytes] = {}
        self.may_publish = False  # a file, by a COMPLETE

    def run(self) -> None:
        connection = self.host.connection(self.service)
        if self.chance.random() < 0.05:
            connection.close()  # without an answer: the agent asks again
            return
        size = self.chance.choice((8192, 8192, 20480, 65536, 1 << 21))
        channel = Opened(connection, self.service, size)
        if self.chance.random() < 0.1:
            channel.wire.poke(self.chance)
            self.lies = 1.0
        try:
            channel.answer()
            self.talk(channel)
            if self.chance.random() < 0.1:
                with suppress(OSError):  # it may have left
                    connection.send(b"{}")
        finally:
            channel.close()

    def talk(self, channel: Opened) -> None:
        wire, chance = channel.wire, self.chance
        directory = self.host.directory
        script = Requests(chance, directory / "files", directory / "outside").script(self.service)
        drains = chance.choice((1.0, 1.0, 0.5, 0.05))
        for number in range(chance.choice((3, 20, 60))):
            for _ in range(chance.choice((1, 1, 2, 8))):
                payload = next(script)
                if chance.random() < self.spoils:
                    payload = spoil(chance, self.service, payload)
                self.send(wire, payload, number)
            if chance.random() < self.lies:
                self.lie(wire)
            if self.events and chance.random() < 0.3:
                wire.abuse_events(chance, flags=True)
            if chance.random() < 0.1:
                self.host.beat()
            if chance.random() < drains:
                self.listen(wire)
        if not self.lies:
            self.all_is_answered(channel)

    def send(self, wire: Wire, payload: bytes, number: int) -> None:
        transaction_id = len(self.sent) + 1
        kind = 6 if self.chance.random() < 0.97 else self.chance.choice((0, 7, 9, 11, 63, 0xFFFF))
        if payload[12:14] == b"\x07\0" and payload[28:32] == b"\x02\0\0\0":
            self.may_publish = True
        signal = None if self.chance.random() < 0.9 else self.chance.random() < 0.5
        if wire.send(payload, transaction_id, kind, signal):
            self.sent[transaction_id] = payload

    def lie(self, wire: Wire) -> None:
        self.may_publish = True
        match self.chance.randrange(3):
            case 0:
                wire.poke(self.chance)
            case 1:
                wire.flip(self.chance, self.chance.choice((1, 50, 500)))
            case _:
                wire.lie_about_length(self.chance)
        wire.signal()

    def listen(self, wire: Wire) -> None:
        answers = wire.drain()
        if self.lies:
            return
        for answer in answers:
            self.check(answer.transaction_id, answer.payload)

    def check(self, transaction_id: int, payload: bytes) -> None:
        request = self.sent[transaction_id]
        assert len(payload) == (len(request) + 7) & ~7
        assert payload[25] == 5, "an answer is not marked as one"
        assert payload[24] == request[24]

    def all_is_answered(self, channel: Opened) -> None:
        """The channel is as good as new after all that was said on it: a negotiation is answered."""
        wire = channel.wire
        offer = NegotiateRequest((Version(3, 0),), (Version(3, 0),)).encode()
        last = len(self.sent) + 1
        deadline = time.monotonic() + TIMEOUT
        wire.signal()  # some were not signalled, as the rules ask for
        while not wire.send(Frame(MessageType.NEGOTIATE, offer).encode(), last):
            self.listen(wire)
            assert time.monotonic() < deadline, f"the agent does not read: {self.host.facts()}"
        self.sent[last] = Frame(MessageType.NEGOTIATE, offer).encode()
        while (answer := wire.wait(deadline)) is not None:
            self.check(answer.transaction_id, answer.payload)
            if answer.transaction_id == last:
                return
        pytest.fail(f"the agent does not answer: {self.host.facts()}")


def prepare(directory: Path) -> None:
    """An allowed directory with everything in it that leads out of it."""
    files, outside = directory / "files", directory / "outside"
    (files / "dir").mkdir(parents=True)
    (outside / "sub").mkdir(parents=True)
    (outside / "canary").write_text("untouched")
    (files / "to_outside").symlink_to(outside)
    (files / "link").symlink_to(outside / "canary")
    os.mkfifo(files / "fifo")


def tree(directory: Path, *but: str) -> dict[str, tuple[int, ...]]:
    """Everything below, with what would show a change of it."""
    found = {}
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        if not name.startswith(but):
            status = path.lstat()
            found[name] = (status.st_mode, status.st_size, status.st_mtime_ns if not path.is_dir() else 0)
    return found


@pytest.fixture
def host(tmp_path) -> Iterator[HostileHost]:
    prepare(tmp_path)
    host = HostileHost(tmp_path)
    yield host
    host.close()


def test_no_host_can_end_hang_or_abuse_an_agent(host, tmp_path) -> None:
    host.beat()
    for service in TYPES:
        host.waiting[service] = host.connection(service)
    untouchable = tree(tmp_path, "files", "pools")
    start = host.facts()
    end = time.monotonic() + SECONDS
    seed = SEED
    while time.monotonic() < end:
        files = tree(tmp_path / "files")
        episode = Episode(host, seed)
        try:
            episode.run()
            host.waiting[episode.service] = host.connection(episode.service)
            host.beat()
            facts = host.at_rest()
            assert facts["errors"] == []
            if episode.service == "vss":
                assert not facts["frozen"]
            assert (
                facts["descriptors"] <= start["descriptors"] + 3
            )  # a look-up of the domain name, a process for files
            assert facts["resident"] <= start["resident"] + (64 << 10)
            assert facts["tasks"] <= start["tasks"]
            assert tree(tmp_path, "files", "pools") == untouchable
            now = tree(tmp_path / "files")
            assert not [name for name in now if name.endswith(".part")]
            if not episode.may_publish:
                assert {k: v for k, v in now.items() if k in files} == files
                assert [
                    name for name in now if name not in files and not (tmp_path / "files" / name).is_dir()
                ] == []
            assert set(os.listdir(tmp_path / "pools")) == {f".kvp_pool_{n}" for n in range(5)}
            assert all((tmp_path / "pools" / f".kvp_pool_{n}").stat().st_size % 2560 == 0 for n in range(5))
        except BaseException as error:
            error.add_note(f"episode {seed}, {episode.service}: HVRING_FUZZ_SEED={seed} begins with it")
            raise
        seed += 1
    assert host.facts()["requests"] > start["requests"]


# ------------------------------------------------------------------------------------------ the handshake

JSON = (
    b"",
    b"{",
    b"[]",
    b"null",
    b'{"hvring": 1}',
    b'{"hvring": 2, "class": "x", "instance": "x", "ring_size": 8192}',
    b'{"hvring": 1, "error": "\\ud800\\u001b[2J"}',
    b'{"hvring": 1, "error": 7, "retry": false}',
    b"[" * 4000,
    b'{"hvring": 1, "ring_size": ' + b"9" * 3900 + b"}",
    b"\xff\xfe",
    bytes(5000),
)
SIZES = (
    0,
    -1,
    1,
    4096,
    8191,
    8192,
    12288,
    1 << 28,
    1 << 31,
    1 << 32,
    1 << 64,
    8192.0,
    "8192",
    None,
    True,
    [8192],
)


def a_descriptor(chance: random.Random, directory: Path, size: int) -> int:
    """Something that may or may not be what belongs there."""
    match chance.randrange(9):
        case 0 | 1:
            memory = os.memfd_create("ring", os.MFD_ALLOW_SEALING)
            os.ftruncate(memory, chance.choice((0, 1, size, 2 * size - 1, 2 * size, 2 * size, 4 * size)))
            return memory
        case 2 | 3 | 4:
            return os.eventfd(
                chance.choice((0, 1, 0xFFFFFFFF)), chance.choice((0, os.EFD_NONBLOCK, os.EFD_SEMAPHORE))
            )
        case 5:
            return os.open("/dev/null", os.O_RDWR)
        case 6:
            return os.open(directory, os.O_RDONLY)
        case 7:
            return os.open(directory / "file", os.O_RDWR | os.O_CREAT)
        case _:
            return os.dup(0)


def absurd_answer(chance: random.Random, connection: socket.socket, directory: Path) -> None:
    size = chance.choice((8192, 8192, 20480))
    fields = {
        "hvring": 1,
        "class": chance.choice((BY_NAME["kvp"].class_guid, BY_NAME["kvp"].class_guid, "", "x" * 200, 7)),
        "instance": chance.choice(("x", "x", "", None)),
        "ring_size": chance.choice((size, size, size, *SIZES)),
    }
    data = json.dumps(fields).encode() if chance.random() < 0.8 else chance.choice(JSON)
    descriptors = [
        a_descriptor(chance, directory, size) for _ in range(chance.choice((0, 1, 2, 3, 3, 3, 4, 5, 20)))
    ]
    first = 0
    if chance.random() < 0.6:  # as it should be, but for some byte of the control pages
        memory = os.memfd_create("ring", os.MFD_ALLOW_SEALING)
        os.ftruncate(memory, 2 * size)
        with mmap.mmap(memory, 2 * size) as rings:
            for _ in range(chance.choice((0, 1, 5))):
                struct.pack_into(
                    "<I",
                    rings,
                    chance.choice((0, 4, 8, 12, 64)) + chance.choice((0, size)),
                    chance.getrandbits(32),
                )
        descriptors += [memory, os.eventfd(0), os.eventfd(0, os.EFD_NONBLOCK)]
        first = len(descriptors) - 3
    try:
        socket.send_fds(connection, [data], descriptors[first:])
    except OSError:  # more than a datagram may carry, or the guest is gone
        pass
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


@contextmanager
def absurd_host(path: Path, chance: random.Random) -> Iterator[None]:
    """Answers every request at once, and leaves."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen()
        stop, stopped = os.pipe()

        def work() -> None:
            while True:
                ready, _, _ = select.select([listener, stop], [], [])
                if stop in ready:
                    return
                connection, _ = listener.accept()
                with connection:
                    connection.recv(4096)
                    absurd_answer(chance, connection, path.parent)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            os.close(stopped)
            thread.join()
            os.close(stop)


def test_no_answer_to_a_handshake_does_more_than_raise(tmp_path) -> None:
    chance = random.Random(SEED)
    opened = 0
    end = time.monotonic() + SECONDS / 6
    with absurd_host(tmp_path / "sock", chance):
        gc.collect()  # what other tests left
        before = len(os.listdir("/proc/self/fd"))
        while time.monotonic() < end:
            try:
                with connect(tmp_path / "sock", "kvp", timeout=TIMEOUT) as channel:
                    opened += 1
                    channel.recv()
                    channel.arm()
            except HvringError:
                pass
            settled = time.monotonic() + TIMEOUT  # the host closes its own copies a moment later
            while len(os.listdir("/proc/self/fd")) != before:
                assert time.monotonic() < settled, "a descriptor stayed open"
    assert opened > 0
