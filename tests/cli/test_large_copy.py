# SPDX-License-Identifier: Apache-2.0
"""A large file: neither the agent nor the process that writes grows with it, and the other services are answered.

HVRING_LARGE_COPY: its MiB.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hvring.host.testing import running_host
from hvring.ic.fcopy import CHUNK

MIB = 1 << 20
SIZE = int(os.environ.get("HVRING_LARGE_COPY", "256")) * MIB
BLOCK = os.urandom(MIB)
WARM = 16 * MIB  # of it, after which nothing may grow any more
GROWTH = 6 * MIB  # that is none: what allocators keep

#: Chunks that may pass while another service is answered, for 99 in a hundred.  A chunk takes about 0.1 ms, and so this
#: is 50 ms, however busy the machine is.
PASSING = 500


class Source:
    """So many bytes that are kept nowhere."""

    def __init__(self, size: int) -> None:
        self.left = size
        self.sum = hashlib.sha256()

    def read(self, size: int) -> bytes:
        piece = BLOCK[: min(size, self.left, MIB)]
        self.left -= len(piece)
        self.sum.update(piece)
        return piece


def grown(pid: int) -> int:
    """Bytes that a process has for itself."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024


def workers(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_large_file_makes_nothing_large_and_holds_up_nobody(
    tmp_path: Path, start: Callable[..., Any]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    if shutil.disk_usage(folder).free < 2 * SIZE:
        pytest.skip(f"needs {2 * SIZE} bytes of free space")
    with running_host(tmp_path / "host.sock", ["fcopy", "kvp", "timesync"]) as host:
        agent = start(
            *("run", "fcopy", "kvp", "timesync", "--virtual", host.path, "--allow", folder),
            *("--pool-dir", tmp_path / "pools", "--json"),
        )
        host.do(host.wait_ready("fcopy", "kvp", "timesync"))
        pid = agent.process.pid
        memory: dict[str, list[int]] = {"agent": [], "writer": []}
        sent = [0]
        writer: list[int] = []

        def progress(done: int, _: int) -> None:
            sent[0] = done
            if done >= WARM and done // CHUNK % 2048 == 0:
                writer[:] = writer or workers(pid)
                memory["agent"].append(grown(pid))
                memory["writer"].append(sum(map(grown, writer)))

        async def beside() -> list[int]:
            """Chunks that passed while one of the other services was asked and answered."""
            source = Source(SIZE)
            copying = asyncio.ensure_future(
                host.fcopy.copy(source, str(folder), name="large", size=SIZE, progress=progress)
            )
            await host.kvp.set("k", "v")
            passed = []
            while not copying.done():
                for ask in (host.kvp.get("k"), host.timesync.sample()):
                    before, began = sent[0], time.perf_counter()
                    await ask
                    seconds.append(time.perf_counter() - began)
                    passed.append((sent[0] - before) // CHUNK)
                await asyncio.sleep(0.005)
            report = await copying
            assert report.size == SIZE
            sums.append(source.sum.hexdigest())
            return passed

        sums: list[str] = []
        seconds: list[float] = []
        passed = sorted(host.do(beside(), timeout=max(1200, SIZE // MIB)))
        copied = json.loads(agent.wait_for('"copied"'))
        assert (copied["size"], copied["sha256"]) == (SIZE, sums[0])
        assert os.stat(folder / "large").st_size == SIZE
        os.unlink(folder / "large")
        assert agent.end() == 0
    late = passed[len(passed) * 99 // 100]
    first = {who: (found[0], max(found)) for who, found in memory.items()}
    slow = sorted(seconds)[len(seconds) * 99 // 100] * 1000
    print(f"{SIZE // MIB} MiB: bytes at first and at most {first}")
    print(f"{len(passed)} answers, 99 % within {late} chunks, {slow:.1f} ms")
    assert len(writer) == 1
    assert len(memory["agent"]) >= SIZE // MIB // 24
    for who, found in memory.items():
        assert max(found) - found[0] <= GROWTH, who
    assert len(passed) >= 50
    assert late <= PASSING
