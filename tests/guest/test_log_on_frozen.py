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

from hvring.host import VirtualHost

KEYS = [f"key{n}" for n in range(40)]


def test_a_log_on_a_frozen_file_system_keeps_nobody_waiting_and_nothing_is_lost(
    namespace: Any, processes: contextlib.ExitStack, tmp_path: Path
) -> None:
    mount = namespace.mount_image("a")
    socket, log = tmp_path / "host.sock", f"{mount}/log"
    words = ["run", "vss", "kvp", "--virtual", socket, "--real", "--only", mount, "--loop", mount, "--json"]
    words += ["--pool-dir", tmp_path / "pools", "--control", tmp_path / "control.sock"]
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
        async with asyncio.timeout(120), VirtualHost(socket, ["vss", "kvp"]) as host:
            await host.wait_ready("vss", "kvp")
            await host.vss.freeze()
            before = written()
            for key in KEYS:  # each is an event, and is answered
                await host.kvp.set(key, "value")
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
    assert [line["key"] for line in lines if line["event"] == "changed"] == KEYS[: kinds.count("changed")]
    told = kinds.count("changed") + next((line["events"] for line in lines if line["event"] == "lost"), 0)
    held_back = lines[-1]["services"]["kvp"]["counters"]["events_suppressed"]
    assert told + held_back == len(KEYS)
    assert kinds.index("frozen") < kinds.index("changed") < kinds.index("thawed")
    times = [line["time"] for line in lines]
    assert times == sorted(times)
