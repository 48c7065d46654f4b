# SPDX-License-Identifier: Apache-2.0
"""Effects that remember what was asked of them, and requests as they come out of a ring."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import pytest

from hvring.errors import EffectError
from hvring.guest.network import IpInfo
from hvring.guest.power import PowerAction, ShutdownOrder
from hvring.ic import Frame, Status, Version
from hvring.pending import Pending

T = TypeVar("T")
Packet = Callable[..., bytes]


class FakePower:
    def __init__(self) -> None:
        self.supported = set(PowerAction)
        self.orders: list[ShutdownOrder] = []
        self.let_go: list[ShutdownOrder] = []
        self.broken = False

    def supports(self, action: PowerAction) -> bool:
        return action in self.supported

    def act(self, order: ShutdownOrder) -> Callable[[], None]:
        if self.broken:
            raise EffectError("no init system")
        self.orders.append(order)
        return lambda: self.let_go.append(order)


class FakeClock:
    """Guest time 1000 s after 1970; ``counter`` is the reference counter."""

    def __init__(self) -> None:
        self.counter: int | None = None
        self.set_to: list[int] = []
        self.broken = False

    def now(self) -> int:
        return 1000 * 10**9

    def reference(self) -> int | None:
        return self.counter

    def set(self, unix_ns: int) -> None:
        if self.broken:
            raise EffectError("not permitted")
        self.set_to.append(unix_ns)


class FakeFreezer:
    def __init__(self) -> None:
        self.ready = True
        self.frozen = False
        self.calls: list[str] = []
        self.broken: set[str] = set()

    def freeze(self) -> None:
        self._call("freeze")
        self.frozen = True

    def thaw(self) -> None:
        self._call("thaw")
        self.frozen = False

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name in self.broken:
            raise EffectError(f"cannot {name}")


class FakeIncoming:
    def __init__(self, receiver: FakeReceiver, path: str) -> None:
        self.receiver = receiver
        self.path = path
        self.data = bytearray()

    def write(self, offset: int, data: bytes | memoryview) -> Pending[None] | None:
        return self.receiver.later(lambda: self._write(offset, data))

    def _write(self, offset: int, data: bytes | memoryview) -> None:
        if offset + len(data) > self.receiver.room:
            raise EffectError("no space", Status.DISK_FULL)
        self.data.extend(bytes(max(0, offset + len(data) - len(self.data))))
        self.data[offset : offset + len(data)] = data

    def complete(self) -> str | Pending[str]:
        return self.receiver.later(self._complete)

    def _complete(self) -> str:
        if self.receiver.broken:
            raise EffectError("cannot publish")
        self.receiver.files[self.path] = bytes(self.data)
        return self.path

    def abort(self) -> Pending[None] | None:
        return self.receiver.later(lambda: self.receiver.aborted.append(self.path))


class FakeReceiver:
    """``slow``: nothing is done before it is resumed; ``cancelled`` counts what never was."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.aborted: list[str] = []
        self.started: list[tuple[bool, bool, int]] = []
        self.room = 10**6
        self.broken = False
        self.slow = False
        self.cancelled = 0

    def later(self, do: Callable[[], T]) -> T | Pending[T]:
        return Pending(do, 0.0, cancel=self._cancel) if self.slow else do()

    def _cancel(self) -> None:
        self.cancelled += 1

    def start(
        self, directory: str, name: str, *, overwrite: bool = False, create_path: bool = False, size: int = 0
    ) -> FakeIncoming | Pending[FakeIncoming]:
        path = f"{directory}/{name}"
        return self.later(lambda: self._start(path, overwrite, create_path, size))

    def _start(self, path: str, overwrite: bool, create_path: bool, size: int) -> FakeIncoming:
        self.started.append((overwrite, create_path, size))
        if path in self.files and not overwrite:
            raise EffectError("there is such a file", Status.ALREADY_EXISTS)
        return FakeIncoming(self, path)


class FakeStore:
    def __init__(self) -> None:
        self.pools: list[dict[str, str]] = [{} for _ in range(5)]
        self.facts: list[tuple[str, str]] = [("OSName", "Lab Linux"), ("OSMajorVersion", "13")]
        self.adapters: dict[str, IpInfo] = {}
        self.guids: set[str] = set()
        self.error: Exception | None = None
        self.unprepared: Exception | None = None
        self.prepared = 0

    def _check(self) -> None:
        if self.error is not None:
            raise self.error

    def prepare(self) -> None:
        self.prepared += 1
        if self.unprepared is not None:
            raise self.unprepared

    def get(self, pool: int, key: str) -> str | None:
        self._check()
        return self.pools[pool].get(key)

    def set(self, pool: int, key: str, value: str) -> None:
        self._check()
        self.pools[pool][key] = value

    def delete(self, pool: int, key: str) -> bool:
        self._check()
        return self.pools[pool].pop(key, None) is not None

    def record(self, pool: int, index: int) -> tuple[str, str] | None:
        self._check()
        items = list(self.pools[pool].items())
        return items[index] if index < len(items) else None

    def automatic(self) -> Sequence[tuple[str, str]]:
        self._check()
        return self.facts

    def ip_info(self, mac: str) -> IpInfo | None:
        self._check()
        return self.adapters.get(mac)

    def set_ip(self, guid: str, wish: IpInfo) -> None:
        raise EffectError("this machine's network is not changed for a host", Status.NOT_SUPPORTED)

    def adapter(self, guid: str) -> bool:
        self._check()
        return guid in self.guids


class FakeTime:
    """A monotonic clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def power() -> FakePower:
    return FakePower()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def freezer() -> FakeFreezer:
    return FakeFreezer()


@pytest.fixture
def receiver() -> FakeReceiver:
    return FakeReceiver()


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def monotonic() -> FakeTime:
    return FakeTime()


def make_packet(kind: int, body: bytes = b"", version: tuple[int, int] = (0, 0), **fields: int) -> bytes:
    raw = Frame(kind, body, version=Version(*version), **fields).encode()
    return raw + bytes(-len(raw) % 8)


@pytest.fixture(scope="session")
def packet() -> Packet:
    """``packet(type, body, version=…)``: a request's payload, rounded to 8."""
    return make_packet


@pytest.fixture(scope="session")
def status_of() -> Callable[[object], int]:
    """The status in a reply, whose flags must be those of a response."""

    def look(reply: object) -> int:
        payload: bytes = reply.payload  # type: ignore[attr-defined]
        assert payload[25] == 5
        return int.from_bytes(payload[20:24], "little")

    return look


def services_over(
    power: FakePower,
    clock: FakeClock,
    store: FakeStore,
    freezer: FakeFreezer,
    receiver: FakeReceiver,
    monotonic: FakeTime,
) -> dict[str, object]:
    from hvring.services import Fcopy, Heartbeat, Kvp, Shutdown, TimeSync, Vss

    made = (
        Shutdown(power),
        TimeSync(clock, mode="step", monotonic=monotonic),
        Heartbeat(),
        Kvp(store),
        Vss(freezer, monotonic=monotonic),
        Fcopy(receiver),
    )
    return {service.name: service for service in made}


@pytest.fixture
def services(
    power: FakePower,
    clock: FakeClock,
    store: FakeStore,
    freezer: FakeFreezer,
    receiver: FakeReceiver,
    monotonic: FakeTime,
) -> dict[str, object]:
    """All six by name, over the fakes."""
    return services_over(power, clock, store, freezer, receiver, monotonic)


@pytest.fixture(scope="session")
def make_services() -> Callable[[], dict[str, object]]:
    """All six by name, over fakes of their own."""
    return lambda: services_over(
        FakePower(), FakeClock(), FakeStore(), FakeFreezer(), FakeReceiver(), FakeTime()
    )
