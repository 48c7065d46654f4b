# SPDX-License-Identifier: Apache-2.0
"""The list of disks in FREEZE, from a host's verb through a ring to what becomes of it."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest

from hvring.agent import Agent
from hvring.events import EventKind
from hvring.guest.freezer import RehearsedFreezer
from hvring.guest.mounts import Filesystem, Mount, Plan
from hvring.host import VirtualHost
from hvring.ic import Lun
from hvring.services import Vss
from hvring.transport.virtual import connect_async

PLAN = Plan((Filesystem((Mount(1, "8:1", "/data", "ext4", "/dev/sda1", False),)),), ())
UNKNOWN = Lun(1, bytes(range(16)), 0, 0, 7)
TABLE = [Lun(1, bytes([n % 256] * 16), 0, n % 4, n % 64) for n in range(260)]


@pytest.mark.parametrize(
    ("luns", "is_wanted", "said"),
    [
        ((), True, "/data; all are frozen: the host names no disk"),
        ((UNKNOWN,), True, "SCSI 03020100-0504-0706-0809-0a0b0c0d0e0f target 0 LUN 7, which is no disk here"),
        (TABLE, True, "all are frozen: the host names SCSI 00000000-"),
        ((UNKNOWN,), False, "/data"),
    ],
)
def test_what_a_host_names_is_told(tmp_path: Path, luns: list[Lun], is_wanted: bool, said: str) -> None:
    told = []

    async def main() -> None:
        path = tmp_path / "host"
        service = Vss(RehearsedFreezer(lambda: PLAN), only_named=is_wanted)
        opener = partial(connect_async, path, timeout=None, wait=True)
        async with (
            asyncio.timeout(60),
            VirtualHost(path, ["vss"]) as host,
            Agent([service], opener, on_event=told.append),
        ):
            await host.wait_ready("vss")
            await host.vss.backup(luns=luns)
            assert host.violations == []

    asyncio.run(main())
    (frozen,) = [event.detail for event in told if event.kind is EventKind.FROZEN]
    assert said in frozen
    assert is_wanted or frozen == said


def test_more_than_a_freeze_can_name_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "host"
        freezer = RehearsedFreezer(lambda: PLAN)
        opener = partial(connect_async, path, timeout=None, wait=True)
        async with asyncio.timeout(60), VirtualHost(path, ["vss"]) as host, Agent([Vss(freezer)], opener):
            await host.wait_ready("vss")
            with pytest.raises(ValueError, match="260 are the most"):
                await host.vss.backup(luns=[UNKNOWN] * 261)
            assert freezer.events == []
            assert not host.vss.frozen

    asyncio.run(main())
