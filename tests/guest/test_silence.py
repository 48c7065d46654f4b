# SPDX-License-Identifier: Apache-2.0
"""An agent whose log, pools, control socket and swap file lie on the file system that it freezes.

Nothing of it waits for the thaw, nothing that it was told meanwhile is lost, and its memory may be on that very disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from memory_of import LastMoment, faults, kilobytes, page_out
from writers import TIMEOUT, wait_for

from hvring.daemon.control.client import ControlClient
from hvring.host import VirtualHost

pytestmark = pytest.mark.root

HOLD = 2.5  # seconds, at least: what a host takes for its snapshot
SERVICES = ("vss", "kvp", "heartbeat")


class Sampler:
    """Looks all the time whether a thread of a family of processes waits for a thaw."""

    def __init__(self, parent: int) -> None:
        self.parent = parent
        self.rounds = 0
        self.seen: set[int] = set()
        self.waiting: set[tuple[str, str]] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(0.002):
            for pid in family(self.parent):
                self.seen.add(pid)
                for task in Path(f"/proc/{pid}/task").glob("*"):
                    with contextlib.suppress(OSError):
                        place = (task / "wchan").read_text()
                        if "percpu_rwsem" in place or "freeze" in place or "thaw" in place:
                            self.waiting.add(((task / "comm").read_text().strip(), place))
            self.rounds += 1


def family(pid: int) -> list[int]:
    """A process and all that came of it."""
    found = [pid]
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += family(int(child))
    return found


def named(pid: int, name: str) -> int:
    """The one of that name in its family."""
    (found,) = [one for one in family(pid) if Path(f"/proc/{one}/comm").read_text().strip() == name]
    return found


@pytest.fixture
def swap(namespace: Any, processes: contextlib.ExitStack) -> Any:
    """swap(mount): a swap file on it is in use; skips where the kernel refuses."""

    def use(mount: str) -> str:
        file = f"{mount}/swap"
        namespace.run("dd", "if=/dev/zero", f"of={file}", "bs=1M", "count=48", "status=none")
        namespace.run("chmod", "600", file)
        namespace.run("mkswap", file)
        # Swap is the whole machine's: whatever becomes of this process, it goes when the pipe ends.
        script = 'swapon "$0" && echo on && cat >&2; swapoff "$0"'
        keeper = subprocess.Popen(
            namespace.inside("sh", "-c", script, file),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,
        )
        assert keeper.stdout is not None
        if keeper.stdout.readline() != b"on\n":
            pytest.skip(f"no swap files here: {keeper.communicate()[1].decode()}")
        processes.callback(keeper.communicate)
        return file

    return use


@pytest.fixture
def start_agent(namespace: Any, processes: contextlib.ExitStack, tmp_path: Path) -> Any:
    """start_agent(mount) -> its process, with all that it writes on that mount"""

    def start(mount: str) -> subprocess.Popen[bytes]:
        words = ["run", *SERVICES, "--virtual", tmp_path / "host", "--real", "--only", mount, "--loop", mount]
        words += ["--json", "--pool-dir", f"{mount}/pools", "--control", f"{mount}/control"]
        script = 'exec "$@" >"$0/log" 2>"$0/errors"'
        agent = subprocess.Popen(
            namespace.inside("sh", "-c", script, mount, sys.executable, "-m", "hvring", *map(str, words))
        )
        processes.callback(agent.wait)
        processes.callback(agent.kill)
        return agent

    return start


@contextlib.contextmanager
def asked(namespace: Any, mount: str) -> Iterator[ControlClient]:
    with ControlClient(f"/proc/{namespace._keeper.pid}/root{mount}/control", timeout=TIMEOUT) as client:
        yield client


def test_nothing_waits_for_the_thaw_and_nothing_is_lost(
    namespace: Any, swap: Any, start_agent: Any, tmp_path: Path
) -> None:
    mount = namespace.mount_image("a", size=128)
    swap(mount)
    agent = start_agent(mount)
    swapped: list[int] = []

    def lines() -> list[dict[str, Any]]:
        return [json.loads(line) for line in namespace.run("cat", f"{mount}/log").splitlines()]

    def status() -> dict[str, Any]:
        with asked(namespace, mount) as client:  # one that connects to what is frozen
            return client.ask("status")

    async def main() -> None:
        async with asyncio.timeout(10 * TIMEOUT), VirtualHost(tmp_path / "host", SERVICES) as host:
            await host.wait_ready(*SERVICES)
            await host.kvp.set("before", "1")
            with Sampler(agent.pid) as sampler:
                await host.vss.freeze()
                before, began = lines(), asyncio.get_running_loop().time()
                page_out(agent.pid)  # what it needs now comes from the frozen disk
                swapped.append(kilobytes(agent.pid, "VmSwap"))
                assert await host.kvp.get("before") == "1"
                held = asyncio.create_task(host.kvp.set("meanwhile", "2"))
                asked_for = 0
                while asyncio.get_running_loop().time() < began + HOLD or asked_for < 20:
                    await host.heartbeat.beat()
                    found = await asyncio.to_thread(status)
                    assert found["quiet"]
                    assert found["services"]["vss"]["backup"] == "frozen"
                    asked_for += 1
                with asked(namespace, mount) as client:
                    client.ask("set_health", state="critical", text="told while frozen")
                page_out(agent.pid)
                assert not held.done()
                assert lines() == before
                await host.vss.thaw()
                await held
            assert await host.kvp.get("meanwhile") == "2"
            assert sampler.waiting == set()
            assert sampler.rounds > 20
            assert len(sampler.seen) >= 3  # the agent, the guardian and its child
            wait = asyncio.to_thread(wait_for, lambda: any(line["event"] == "thawed" for line in lines()))
            await wait
            assert host.violations == []

    asyncio.run(main())
    agent.send_signal(signal.SIGTERM)
    assert agent.wait(TIMEOUT) == 0
    assert namespace.run("cat", f"{mount}/errors") == ""
    told = [(line["event"], line.get("key", line.get("text", ""))) for line in lines()]
    expected = [("changed", "before"), ("frozen", ""), ("health", "told while frozen"), ("thawed", "")]
    expected += [("changed", "meanwhile")]
    assert [one for one in told if one in expected] == expected
    if swapped == [0]:
        pytest.skip("this kernel, or this control group, swaps nothing out: all the rest was shown")


def test_the_guardian_faults_no_page_while_all_is_frozen_however_hard_it_is_pressed(
    namespace: Any, swap: Any, start_agent: Any, tmp_path: Path, processes: contextlib.ExitStack
) -> None:
    """Not one, to its very end; in some round a page may be on its way to another place in memory when it is used."""
    mount = namespace.mount_image("a", size=128)
    swap(mount)
    agent = start_agent(mount)
    counted: list[tuple[int, ...]] = []

    async def one(host: VirtualHost) -> None:
        await host.vss.freeze()
        guards = [named(agent.pid, "hvring-guardian"), named(agent.pid, "hvring-freezer")]
        moment = LastMoment(guards[0])
        processes.callback(moment.close)
        before = [faults(pid) for pid in guards]
        refused = [page_out(pid) for pid in guards]
        page_out(agent.pid)
        for _ in range(20):
            await host.heartbeat.beat()
        assert all(refused)
        assert [kilobytes(pid, "VmSwap") for pid in guards] == [0, 0]
        assert all(kilobytes(pid, "VmLck") > 1000 for pid in guards)
        child = faults(guards[1])
        thaw = asyncio.create_task(host.vss.thaw())
        while (last := moment.look()) is None:
            await asyncio.sleep(0.002)
        await thaw
        small, large = (last[n] - before[0][n] for n in (0, 1))
        counted.append((small, large, child[0] - before[1][0], child[1] - before[1][1]))

    async def main() -> None:
        async with asyncio.timeout(10 * TIMEOUT), VirtualHost(tmp_path / "host", SERVICES) as host:
            await host.wait_ready(*SERVICES)
            while len(counted) < 2 or (counted[-1] != (0, 0, 0, 0) and len(counted) < 6):
                await one(host)

    asyncio.run(main())
    assert (0, 0, 0, 0) in counted
    assert all(large == lost == 0 and small + few < 32 for small, large, few, lost in counted), counted
