# SPDX-License-Identifier: Apache-2.0
"""`hvring run` whose log lies on the file system that it freezes: nothing waits, and all is written after the thaw."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from hvring.daemon.control.client import ControlClient
from hvring.daemon.control.protocol import ControlError
from hvring.host import VirtualHost

TEXTS = [f"text {n}" for n in range(10)]


async def tell_health(client: ControlClient, text: str) -> None:
    """An event, as soon as the agent has time for who asks it."""
    while True:
        try:
            await asyncio.to_thread(client.ask, "set_health", state="critical", text=text)
            return
        except ControlError as error:
            if error.kind != "busy":
                raise
        await asyncio.sleep(0.05)


def test_a_log_on_a_frozen_file_system_keeps_nobody_waiting_and_nothing_is_lost(
    namespace: Any, processes: contextlib.ExitStack, tmp_path: Path
) -> None:
    mount = namespace.mount_image("a")
    socket, log = tmp_path / "host.sock", f"{mount}/log"
    words = [
        "run",
        "vss",
        "heartbeat",
        "--virtual",
        socket,
        "--real",
        "--only",
        mount,
        "--loop",
        mount,
        "--json",
    ]
    words += ["--control", tmp_path / "control.sock"]
    agent = subprocess.Popen(
        namespace.inside(
            "sh", "-c", 'exec "$@" > "$0"', log, sys.executable, "-m", "hvring", *map(str, words)
        )
    )
    processes.callback(agent.wait)
    processes.callback(agent.kill)

    def written() -> list[dict[str, Any]]:
        return [json.loads(line) for line in namespace.run("cat", log).splitlines()]

    def places() -> set[str]:
        """Where the agent's threads are in the kernel."""
        tasks = Path(f"/proc/{agent.pid}/task").iterdir()
        return {(task / "wchan").read_text() for task in tasks}

    async def main() -> None:
        async with asyncio.timeout(120), VirtualHost(socket, ["vss", "heartbeat"]) as host:
            await host.wait_ready("vss", "heartbeat")
            await host.vss.freeze()
            before = written()
            with ControlClient(tmp_path / "control.sock", timeout=60) as client:
                for text in TEXTS:  # each is an event, and is answered
                    await tell_health(client, text)
                    await host.heartbeat.beat()
            assert written() == before
            assert not any("percpu_rwsem" in place for place in places())
            await host.vss.thaw()
            while not any(line["event"] == "thawed" for line in written()):
                await asyncio.sleep(0.05)

    asyncio.run(main())
    agent.send_signal(signal.SIGTERM)
    assert agent.wait(60) == 0
    lines = written()
    kinds = [line["event"] for line in lines]
    assert [line["text"] for line in lines if line["event"] == "health"] == TEXTS
    assert kinds.index("frozen") < kinds.index("health") < kinds.index("thawed")
    times = [line["time"] for line in lines]
    assert times == sorted(times)
