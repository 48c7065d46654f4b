# SPDX-License-Identifier: Apache-2.0
"""What does the agent cost while nothing happens, how soon is it there, and does it grow?

The peers are the in-tree daemons for the three services that they cover; hvring serves six. $HVRING_BENCH_IDLE: seconds
that all of them idle beside each other, 5 unless given.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from agents import RunningAgent, command, environment
from daemons import Daemon
from dpdk import Unavailable
from measure import in_turns
from processes import Footprint
from processors import GUEST, HOST, favoured

from hvring.host.testing import running_host
from hvring.ic.frame import Frame, MessageType
from hvring.ic.heartbeat import Heartbeat
from hvring.vmbus import SERVICE_NAMES

DAEMONS = ("kvp", "vss", "fcopy")
IDLE = float(os.environ.get("HVRING_BENCH_IDLE", "5"))
SETTLING = 1.0  # seconds between the first answers and the window

METRICS: dict[str, tuple[str, Callable[[Footprint, Footprint, float, int], float]]] = {
    "rss": ("KiB", lambda _, after, seconds, messages: after.rss_kib),
    "private": ("KiB", lambda _, after, seconds, messages: after.private_kib),
    "cpu": ("%", lambda before, after, seconds, messages: 100 * (after.seconds - before.seconds) / seconds),
    "wakeups": ("wake-ups", lambda before, after, seconds, messages: after.wakeups - before.wakeups),
    "faults": ("page faults", lambda before, after, seconds, messages: after.faults - before.faults),
    "wakeups-per-message": (
        "wake-ups/message",
        lambda before, after, seconds, messages: (
            (after.wakeups - before.wakeups) / messages if messages else 0.0
        ),
    ),
}


class Window:
    """Some seconds in which the agent gets what an idle host sends, and the daemons nothing."""

    def __init__(self, folder: Path, seconds: float, stack: ExitStack) -> None:
        self.skipped: dict[str, str] = {}
        self.seconds = seconds
        pids: dict[str, int] = {}
        for name in DAEMONS:
            try:
                pids[f"hv_{name}_daemon"] = stack.enter_context(Daemon(name, folder / f"{name}.lib")).pid
            except Unavailable as why:
                self.skipped[name] = str(why)
        host = stack.enter_context(running_host(folder / "virtual.sock"))
        words = ("run", "--virtual", host.path, "--pool-dir", folder / "pools", "--allow", folder)
        agent = subprocess.Popen(command(*words), env=environment(), cwd=folder, stdout=subprocess.DEVNULL)
        stack.callback(agent.wait)
        stack.callback(agent.terminate)
        pids["hvring run, six services"] = agent.pid
        host.do(host.wait_ready(*SERVICE_NAMES))
        time.sleep(SETTLING)  # what is measured is time that passes
        sent = self._messages(host)
        before = {name: Footprint.of(pid) for name, pid in pids.items()}
        time.sleep(seconds)
        after = {name: Footprint.of(pid) for name, pid in pids.items()}
        self.messages = self._messages(host) - sent
        self.found = {name: (before[name], after[name]) for name in reversed(pids)}

    def _messages(self, host: Any) -> int:
        return sum(numbers.exchanges for numbers in host.latency.values())


@pytest.fixture(scope="module")
def window(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Window]:
    disabled = request.config.getoption("benchmark_disable") and not request.config.getoption(
        "benchmark_enable"
    )
    with ExitStack() as stack:
        yield Window(tmp_path_factory.mktemp("idle"), 0.2 if disabled else IDLE, stack)


@pytest.mark.parametrize("metric", METRICS)
def test_idle(benchmark: Any, window: Window, metric: str) -> None:
    unit, value = METRICS[metric]
    samples = {}
    for name, (before, after) in window.found.items():
        messages = window.messages if name.startswith("hvring") else 0
        samples[name] = [float(value(before, after, window.seconds, messages))]
    benchmark.extra_info.update(
        unit=unit,
        samples=samples,
        seconds=window.seconds,
        messages=window.messages,
        skipped=window.skipped,
    )
    benchmark.pedantic(lambda: None, rounds=1)


def test_start_up(benchmark: Any, tmp_path: Path) -> None:
    """Milliseconds from the start of the process until the last of its services has answered."""
    number = iter(range(1000))

    def folder() -> Path:
        path = tmp_path / str(next(number))
        path.mkdir()
        return path

    def agent(*services: str) -> Callable[[], float]:
        def run() -> float:
            with favoured(HOST), RunningAgent(folder(), *services, as_guest=True) as found:
                return 1000 * (found.answered - found.started)

        return run

    def daemon() -> float:
        with favoured(GUEST):
            start = time.monotonic()
            with Daemon("kvp", folder()):
                return 1000 * (time.monotonic() - start)

    def interpreter() -> float:
        with favoured(GUEST):
            start = time.monotonic()
            subprocess.run([sys.executable, "-c", "import asyncio"], check=True)
            return 1000 * (time.monotonic() - start)

    candidates = {
        "hvring run, six services": agent(*SERVICE_NAMES),
        "hvring run kvp": agent("kvp"),
        "python and asyncio": interpreter,
    }
    why = ""
    try:
        daemon()
        candidates["hv_kvp_daemon"] = daemon
    except Unavailable as reason:
        why = str(reason)
    in_turns(benchmark, candidates, unit="ms", rounds=9, skipped=why)


def test_growth(benchmark: Any, tmp_path: Path) -> None:
    """KiB that a serving agent gains while it answers many messages."""
    count = 20_000 if benchmark.enabled else 100
    beat = Frame(MessageType.HEARTBEAT, Heartbeat(1).encode()).encode()
    with RunningAgent(tmp_path, "heartbeat") as agent:

        def run() -> float:
            before = Footprint.of(agent.pid)
            for _ in range(count):
                agent.ask("heartbeat", beat)
            return float(Footprint.of(agent.pid).rss_kib - before.rss_kib)

        run()
        in_turns(benchmark, {"hvring run": run}, unit="KiB", rounds=3, messages=count)
