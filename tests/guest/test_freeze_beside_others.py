# SPDX-License-Identifier: Apache-2.0
"""A real freeze that takes its time, in an agent that has other things to do.

An image frozen after the file system that it lies on: its last write waits for a thaw of that one, so that the
freeze is under way for as long as the test likes. All of it is inside a private mount namespace.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from writers import TIMEOUT, write_until_blocked

from hvring.host import GuestStatusError, HostError, Timing, VirtualHost

pytestmark = pytest.mark.root

PROGRAM = Path(__file__).with_name("agent_process.py")
ROOT = Path(__file__).parents[2]
TIMING = Timing(heartbeat_interval=1000, heartbeat_latency=TIMEOUT, freeze=2 * TIMEOUT)


class Scene:
    """The host, the agent's process, and two mounts of which the second is an image on the first."""

    def __init__(self, host: VirtualHost, agent: subprocess.Popen[bytes], outer: str, inner: str) -> None:
        self.host = host
        self.agent = agent
        self.outer = outer
        self.inner = inner


@pytest.fixture
def serving(namespace: Any, tmp_path: Path) -> Any:
    """``async with serving(targets, **settings) as (host, agent)``"""

    @asynccontextmanager
    async def make(
        targets: list[str], **more: Any
    ) -> AsyncIterator[tuple[VirtualHost, subprocess.Popen[bytes]]]:
        path = tmp_path / "host.sock"
        settings = {
            "host": str(path),
            "targets": targets,
            "below": str(namespace.folder),
            "outside": os.readlink("/proc/self/ns/mnt"),
            "freeze_timeout": TIMEOUT,
            "deadline": 2 * TIMEOUT,
            **more,
        }
        async with VirtualHost(path, ["vss", "heartbeat"], timing=TIMING) as host:
            agent = subprocess.Popen(
                namespace.inside(sys.executable, "-W", "error", str(PROGRAM), json.dumps(settings)),
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
            assert agent.stdout is not None
            with agent.stdout:
                try:
                    await host.wait_ready("vss", "heartbeat", timeout=TIMEOUT)
                    yield host, agent
                finally:
                    agent.kill()
                    agent.wait()

    return make


@pytest.fixture
def half_frozen(namespace: Any, write: Callable[[str], Any], serving: Any) -> Any:
    """``async with half_frozen() as (scene, freeze, writer)``: FREEZE was sent, the outer mount is frozen."""
    outer = namespace.mount_image("outer")
    inner = namespace.mount_image("inner", image_folder=outer)

    @asynccontextmanager
    async def make() -> AsyncIterator[tuple[Scene, asyncio.Task[None], Any]]:
        async with serving([outer, inner]) as (host, agent):
            freeze = asyncio.create_task(host.vss.freeze())
            try:
                writer = await asyncio.to_thread(write_until_blocked, write, outer)
                yield Scene(host, agent, outer, inner), freeze, writer
            finally:
                freeze.cancel()
                await asyncio.wait([freeze])

    return make


async def settle(written: Callable[[], bool]) -> None:
    assert await asyncio.to_thread(written)


def test_a_heartbeat_is_answered_while_a_freeze_is_under_way(
    namespace: Any, half_frozen: Any, write: Any
) -> None:
    async def main() -> None:
        async with half_frozen() as (scene, freeze, writer):
            order = []
            freeze.add_done_callback(lambda _: order.append("frozen"))
            for _ in range(3):
                await scene.host.heartbeat.beat()
                order.append("beat")
            assert writer.is_blocked()
            namespace.thaw(scene.outer)  # now the inner one can be frozen
            await freeze
            assert order == ["beat", "beat", "beat", "frozen"]
            on_inner = write(scene.inner)
            await asyncio.to_thread(on_inner.wait_until_blocked)
            await scene.host.heartbeat.beat()
            await scene.host.vss.thaw()
            await settle(on_inner.has_written)
            await settle(writer.has_written)
            assert scene.host.violations == []

    asyncio.run(main())


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
def test_an_agent_that_ends_while_it_freezes_leaves_nothing_frozen(
    half_frozen: Any, write: Any, by: signal.Signals
) -> None:
    async def main() -> None:
        async with half_frozen() as (scene, freeze, writer):
            on_inner = write(scene.inner)
            scene.agent.send_signal(by)
            await settle(writer.has_written)
            await settle(on_inner.has_written)
            assert await asyncio.to_thread(scene.agent.wait, TIMEOUT) == (0 if by == signal.SIGTERM else -by)
            with pytest.raises(HostError):
                await freeze

    asyncio.run(main())


def test_a_channel_that_is_taken_back_breaks_the_freeze_off(half_frozen: Any, write: Any) -> None:
    async def main() -> None:
        async with half_frozen() as (scene, freeze, writer):
            host = scene.host
            await host.set_offered("vss", False)
            with pytest.raises(HostError):
                await freeze
            await host.heartbeat.beat()
            await settle(writer.has_written)
            await settle(write(scene.inner).has_written)
            await host.set_offered("vss", True)
            await host.wait_ready("vss", timeout=TIMEOUT)
            async with asyncio.timeout(TIMEOUT):
                while True:  # the guardian stays for as long as the kernel is at it
                    with contextlib.suppress(GuestStatusError):
                        await host.vss.check()
                        break
            assert scene.agent.poll() is None

    asyncio.run(main())


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_guardian_that_is_killed_in_the_hold_is_noticed_by_the_loop(
    namespace: Any, serving: Any, write: Any
) -> None:
    """By its descriptor, and not because something else happens."""
    mount = namespace.mount_image("a")

    async def main() -> None:
        async with serving([mount]) as (host, agent):
            await host.vss.freeze()
            writer = await asyncio.to_thread(write_until_blocked, write, mount)
            (guardian,) = children(agent.pid)
            for child in children(guardian):
                os.kill(child, signal.SIGKILL)  # it would thaw; now only the agent is left
            os.kill(guardian, signal.SIGKILL)
            await settle(writer.has_written)
            assert agent.stdout is not None
            told = await asyncio.to_thread(agent.stdout.readline)
            while b"failed" not in told:
                told = await asyncio.to_thread(agent.stdout.readline)
            assert told == b"vss: failed backup: the freeze did not hold: the guardian was killed\n"
            with pytest.raises(GuestStatusError):
                await host.vss.thaw()
            await host.vss.freeze()
            await host.vss.thaw()
            await settle(write(mount).has_written)

    asyncio.run(main())


def test_heartbeats_are_answered_while_a_mount_hangs_that_is_to_be_opened(
    namespace: Any, serving: Any, write: Any, hang: Callable[[str], str]
) -> None:
    mount, hung = namespace.mount_image("a"), hang("hung")

    async def main() -> None:
        async with serving([mount], behind=[f"{hung}/disk"], open_timeout=5.0) as (host, _):
            freeze = asyncio.create_task(host.vss.freeze())
            for _ in range(5):
                await host.heartbeat.beat()
                assert not freeze.done()
            with pytest.raises(GuestStatusError):
                await freeze
            await settle(write(mount).has_written)
            await host.heartbeat.beat()
            assert host.violations == []

    asyncio.run(main())
