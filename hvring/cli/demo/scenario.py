# SPDX-License-Identifier: Apache-2.0
"""What the demo's host does, and what must have come of it."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Awaitable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from hvring.cli.demo.guest import GuestProcess
from hvring.guest.pools import Pool
from hvring.guest.power import PowerAction
from hvring.host import Contact, VirtualHost
from hvring.ic.heartbeat import ApplicationState
from hvring.vmbus import SERVICE_NAMES

_SKEW_NS: Final = 1_500_000_000  # the demo's host lives in the future, so that there is something to measure
_TOLERANCE_NS: Final = 1_000_000_000  # an agent on a busy machine reads a sample when it has its turn
_PATIENCE: Final = 60.0  # seconds that it may need for what takes a moment
_REASON: Final = 0x80000000
_TEXT: Final = "Maintenance: the host is updated. Grüße, 世界 😀"
_BEATS: Final = 3


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must hold."""

    service: str
    what: str
    ok: bool
    detail: str = ""


class Scenario:
    """Runs once; ``step`` and ``progress`` say where it is, ``checks`` what was found."""

    def __init__(
        self, host: VirtualHost, guest: GuestProcess, directory: Path, *, size: int, items: int
    ) -> None:
        self.host = host
        self.step = "waiting for the agent"
        self.progress: tuple[int, int] | None = None
        self.checks: list[Check] = []
        self.seconds = 0.0
        self._guest = guest
        self._source = directory / "source.bin"
        self._size = size
        self._items = items
        self._began = time.perf_counter()
        self._figures: dict[str, Any] = {}
        self._pools_listed = 0
        self._versions: dict[str, str | None] = {}

    async def run(self) -> None:
        """All steps; an agent that dies ends it with GuestError."""
        watch = asyncio.create_task(self._guest.watch())
        work = asyncio.create_task(self._steps())
        try:
            await asyncio.wait([watch, work], return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                watch.result()
            work.result()
        finally:
            for task in (watch, work):
                task.cancel()
            await asyncio.wait([watch, work])
        await self._end()
        self.seconds = time.perf_counter() - self._began

    async def _steps(self) -> None:
        await self.host.wait_ready(timeout=_PATIENCE)
        await self._time()
        await self._pairs()
        await self._file()
        await self._backup()
        await self._heartbeats()
        await self._shutdown()

    async def _attempt(self, service: str, what: str, work: Awaitable[Any]) -> Any:
        """A step that may fail without ending the others."""
        try:
            return await work
        except Exception as error:
            self._check(service, what, False, f"{type(error).__name__}: {error}")
            return None

    def _check(self, service: str, what: str, ok: bool, detail: str = "") -> None:
        self.checks.append(Check(service, what, bool(ok), detail))

    async def _time(self) -> None:
        self.step = "telling the time, 1.5 s ahead"
        self.host.timesync.skew_ns = _SKEW_NS
        for _ in range(10):
            await self._attempt("timesync", "sample", self.host.timesync.sample())

    async def _pairs(self) -> None:
        self.step = f"setting {self._items} items"
        wanted = {f"demo.{n:05d}": f"value {n} äöü {'x' * (n % 50)}" for n in range(self._items)}
        for n, (key, value) in enumerate(wanted.items()):
            self.progress = (n, self._items)
            await self.host.kvp.set(key, value)
        self.step = "enumerating them"
        got = await self._attempt("kvp", "enumerate", self.host.kvp.list())
        self._pools_listed += 1
        self._check("kvp", f"{self._items} items set and enumerated", got is not None and dict(got) == wanted)
        file = dict(Pool(self._guest.pools / ".kvp_pool_0").items())
        self._check("kvp", "the same items in the guest's pool file", file == wanted)
        one = next(iter(wanted))
        self._check("kvp", "a value read back", await self.host.kvp.get(one) == wanted[one])
        automatic = await self._attempt("kvp", "automatic keys", self.host.kvp.automatic()) or {}
        self._pools_listed += 1
        self._check("kvp", "ten automatic keys", len(automatic) == 10, str(automatic.get("OSName", "")))
        self.progress = None

    async def _file(self) -> None:
        self.step = "making a file"
        digest = await asyncio.to_thread(_make, self._source, self._size)
        self.step = f"copying {self._size >> 20} MiB into the guest"
        toggled = asyncio.Event()
        toggle = asyncio.create_task(self._toggle(toggled))

        def progress(sent: int, size: int) -> None:
            self.progress = (sent, size)
            if sent * 2 >= size:
                toggled.set()

        report = await self._attempt(
            "fcopy",
            "copy",
            self.host.fcopy.copy(
                self._source, str(self._guest.files) + "/", name="Grüße 世界.bin", progress=progress
            ),
        )
        self.progress = None
        toggled.set()
        await toggle
        self.step = "comparing it"
        arrived = self._guest.files / "Grüße 世界.bin"
        same = arrived.exists() and await asyncio.to_thread(_digest, arrived) == digest
        self._check("fcopy", f"{self._size >> 20} MiB arrived with the same SHA-256", same, digest[:16])
        left = [name for name in os.listdir(self._guest.files) if name != arrived.name]
        self._check("fcopy", "no other file was left", not left, " ".join(left))
        if report is not None:
            self._figures["copy_bytes_per_second"] = report.size / report.seconds

    async def _toggle(self, when: asyncio.Event) -> None:
        """Untick data exchange and tick it again while the file is on its way."""
        await when.wait()
        await self.host.set_offered("kvp", False)
        self._check("kvp", "switched off half-way: rescinded", self.host.negotiated("kvp") is None)
        await self.host.set_offered("kvp", True)
        await self._attempt("kvp", "back", self.host.wait_ready("kvp", timeout=_PATIENCE))
        value = await self._attempt("kvp", "read after that", self.host.kvp.get("demo.00000"))
        self._check("kvp", "switched on again: served, nothing lost", value is not None)

    async def _backup(self) -> None:
        self.step = "backing up (rehearsed)"
        report = await self._attempt("vss", "backup", self.host.vss.backup())
        self._check(
            "vss",
            "check, freeze, thaw, complete (rehearsed)",
            report is not None and not self.host.vss.frozen,
        )

    async def _heartbeats(self) -> None:
        self.step = "counting heartbeats"

        def good() -> bool:
            status = self.host.heartbeat.status
            return status.contact is Contact.OK and status.application is ApplicationState.HEALTHY

        give_up_at = time.perf_counter() + _PATIENCE
        beats = self.host.latency["heartbeat"]
        while beats.exchanges < _BEATS or not (good() or time.perf_counter() > give_up_at):
            await asyncio.sleep(0.1)
        self._check("heartbeat", "contact, and healthy applications", good(), str(self.host.heartbeat.status))

    async def _shutdown(self) -> None:
        self.step = "asking it to shut down (rehearsed)"
        done = self.host.shutdown.request(reason=_REASON, timeout=120, text=_TEXT)
        await self._attempt("shutdown", "request", done)
        await self._attempt("timesync", "sample", self.host.timesync.sample())

    async def _end(self) -> None:
        """Stop the agent, and look at what it says of itself."""
        self.step = "stopping the agent"
        status, words = await self._guest.stop()
        self._check("agent", "ended cleanly", status == 0, f"status {status}")
        orders = words.get("orders", [])
        good = [order for order in orders if order["action"] == PowerAction.OFF.value]
        self._check(
            "shutdown",
            "order with reason and text received, not carried out",
            len(orders) == len(good) == 1
            and (orders[0]["text"], int(orders[0]["reason"], 16)) == (_TEXT, _REASON)
            and words.get("rehearsal") is True,
            orders[0]["text"] if orders else "",
        )
        offset = words.get("clock_offset_ns")
        measured = offset is not None and abs(offset - _SKEW_NS) < _TOLERANCE_NS
        self._check(
            "timesync",
            "offset of 1.5 s measured",
            measured,
            "" if offset is None else f"{offset / 1e9:+.4f} s",
        )
        services = words.get("services", {})
        self._versions = {name: line["version"] for name, line in services.items()}
        openings = {name: line["openings"] for name, line in services.items()}
        wanted = {name: 2 if name == "kvp" else 1 for name in SERVICE_NAMES}
        self._check(
            "agent",
            "data exchange opened twice, the others once",
            openings == wanted,
            "" if openings == wanted else str(openings),
        )
        counters = {name: line["counters"] for name, line in services.items()}
        bad = {name: one["failed"] + one["silent"] for name, one in counters.items()}
        bad["kvp"] = bad.get("kvp", 0) - self._pools_listed  # each list ends with "no more items"
        self._check(
            "agent",
            "every request answered, none with a failure",
            not any(bad.values()),
            str(bad) if any(bad.values()) else "",
        )
        broken = self.host.violations
        self._check("host", "no rule was broken", not broken, "; ".join(map(str, broken[:3])))

    def result(self) -> dict[str, Any]:
        """Everything, as plain data."""
        return {
            "ok": all(check.ok for check in self.checks),
            "seconds": self.seconds,
            **self._figures,
            "services": {
                name: {"version": self._versions.get(name), **numbers.as_dict()}
                for name, numbers in self.host.latency.items()
            },
            "checks": [asdict(check) for check in self.checks],
        }


def _make(path: Path, size: int) -> str:
    """A file of ``size`` bytes that does not repeat within 8 MiB; its SHA-256."""
    digest = hashlib.sha256()
    block = os.urandom(8 << 20)
    with path.open("wb") as file:
        for start in range(0, size, len(block)):
            part = start.to_bytes(8, "little") + block[8 : size - start]
            part = part[: size - start]
            file.write(part)
            digest.update(part)
    return digest.hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
