# SPDX-License-Identifier: Apache-2.0
"""A lying kernel by chance: afterwards everything is as good as before."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from hv_utils_model import FAIL, HvUtils
from hv_utils_model.packets import (
    fcopy,
    fcopy_start,
    fcopy_write,
    kvp_enumerate,
    kvp_pair,
    packet,
    utf16,
    vss,
)
from lies import LIES, SERVICES
from serving import Attended, run

from hvring.agent import service_loop
from hvring.guest.pools import PoolStore


class Episode:
    """Steps by chance, honest ones and lies; after each of them everything must be as good as before."""

    def __init__(self, seed: int, kernel: HvUtils, attended: Attended, files: Path) -> None:
        self.chance = random.Random(seed)
        self.kernel = kernel
        self.attended = attended
        self.files = files
        self.steps: list[Callable[[], Coroutine[Any, Any, None]]] = [
            self.honest,
            self.honest,
            self.honest,
            self.failing_call,
            self.garbage,
            self.lie,
            self.hibernation,
            self.rebinding,
            self.ending,
        ]

    async def run(self, steps: int) -> None:
        for _ in range(steps):
            for name in SERVICES:
                await self.settled(name)
            await self.chance.choice(self.steps)()
        for name in SERVICES:
            await self.settled(name)

    def name(self) -> str:
        return self.chance.choice(SERVICES)

    def request(self, name: str) -> bytes:
        path, chance = str(self.files), self.chance
        return chance.choice(
            {
                "kvp": [
                    kvp_pair(1, 0, "key", chance.choice([1, 2, 4, 8, 11]), chance.randbytes(8)),
                    kvp_pair(0, 0, "key"),
                    kvp_enumerate(chance.randrange(7), chance.randrange(12)),
                    kvp_enumerate(0, 0, chance.randrange(256)),
                    packet("kvp", bytes([chance.randrange(6)]) + chance.randbytes(chance.randrange(40))),
                ],
                "vss": [vss(2), vss(5), vss(6), vss(chance.randrange(256))],
                "fcopy": [
                    fcopy_start(
                        f"f{chance.randrange(3)}", path, chance.randrange(4), chance.choice([0, 5, 10])
                    ),
                    fcopy_write(chance.choice([0, 5, 2**62]), b"12345", size=chance.choice([5, 5, 6145])),
                    fcopy(chance.randrange(6)),
                ],
            }[name]
        )

    async def honest(self) -> None:
        name = self.name()
        await self.attended.status(name, self.request(name))

    async def failing_call(self) -> None:
        name = self.name()
        call = self.chance.choice(["read", "write", "poll"])
        self.kernel[name].fails(
            call, self.chance.choice([errno.EINVAL, errno.EFAULT, errno.EINTR, errno.EBADF])
        )
        await self.attended.status(name, self.request(name))

    async def garbage(self) -> None:
        name = self.name()
        await self.tell(
            name, self.chance.randbytes(self.chance.choice([0, 1, 4, 12, 36, 64, 1088, 6196, 7432]))
        )

    async def lie(self) -> None:
        name, data, _ = LIES[self.chance.choice(list(LIES))]
        await self.tell(name, data)

    async def tell(self, name: str, data: bytes) -> None:
        device = self.kernel[name]
        answers, opened = len(device.taken), self.attended.openings[name]
        device.tells(data)
        await self.attended.until(
            lambda: len(device.taken) > answers or self.attended.openings[name] > opened
        )

    async def hibernation(self) -> None:
        opened = {name: self.attended.openings[name] for name in ("vss", "fcopy")}
        for device in self.kernel.devices.values():
            device.hibernate()
        for name, before in opened.items():  # the answer to the made-up message is never taken
            await self.attended.reopened(name, before)

    async def rebinding(self) -> None:
        name = self.name()
        opened = self.attended.openings[name]
        self.kernel[name].unbind()
        await self.attended.until(lambda: not self.kernel[name].node)
        self.kernel[name].bind()
        self.attended.changed()
        await self.attended.reopened(name, opened)

    async def ending(self) -> None:
        """Whatever was begun: backup and copy of the next host work."""
        assert await self.attended.status("vss", vss(5)) == 0
        assert await self.attended.status("vss", vss(6)) in (0, FAIL)

    async def settled(self, name: str) -> None:
        """Nothing waits to be read, and the device is open."""
        device = self.kernel[name]
        device.repents()  # a request that is the kernel's own did not meet the failure
        await self.attended.until(lambda: device.file is not None and device.file.unread is None)


@pytest.mark.parametrize("seed", range(6))
def test_episodes_of_a_lying_kernel(
    kernel: HvUtils,
    services: dict[str, Any],
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
) -> None:
    monkeypatch.setattr(service_loop, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(service_loop, "LAST_PAUSE", 0.001)
    freezer = services["vss"]._freezer

    async def main() -> None:
        async with Attended(kernel, list(services.values())) as attended:
            await Episode(seed, kernel, attended, files).run(80)
            for name in SERVICES:
                assert attended.agent.stats()[name]["stopped"] is None
            # After all that a whole backup and a whole file.
            assert await attended.status("vss", vss(6)) in (0, FAIL)
            assert await attended.status("vss", vss(5)) == 0
            assert freezer.frozen
            assert await attended.status("vss", vss(6)) == 0
            for request in (
                fcopy(3),
                fcopy_start("whole", str(files), 1, 5),
                fcopy_write(0, b"12345"),
                fcopy(2),
            ):
                assert await attended.status("fcopy", request) == 0
            assert await attended.status("kvp", kvp_pair(1, 1, "key", 1, utf16("value"))) == 0

    run(main())
    assert not freezer.frozen
    assert freezer.log.count("freeze") == freezer.log.count("thaw")
    for device in kernel.devices.values():
        assert (device.bugs, device.blocked_reads, device.file) == (0, 0, None)
    assert (files / "whole").read_bytes() == b"12345"
    assert [p.name for p in files.iterdir() if p.name not in ("whole", "f0", "f1", "f2")] == []
    assert all(p.read_bytes() in (b"", b"12345", b"1234512345") for p in files.iterdir())
    assert PoolStore(tmp_path / "pools").get(1, "key") == "value"
