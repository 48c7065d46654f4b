# SPDX-License-Identifier: Apache-2.0
"""The agent that is attacked, as a process: ``python hostile_agent.py DIRECTORY``.

Six rehearsed services at ``attacked.sock``, and one heartbeat at ``honest.sock`` on the same event loop.  For each line
on its standard input it prints one JSON object: what a hostile host must not be able to change.
"""

from __future__ import annotations

import asyncio
import faulthandler
import json
import logging
import os
import sys
from functools import partial
from pathlib import Path

from hvring.agent import (
    Agent,
    FcopySettings,
    HeartbeatSettings,
    KvpSettings,
    Settings,
    TimeSyncSettings,
    service_loop,
    standard_services,
)
from hvring.events import Event, EventKind
from hvring.ic import ApplicationState
from hvring.services import Heartbeat
from hvring.transport.virtual import connect_async


def resident() -> int:
    """KiB that are this process's own; the rings are not."""
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


async def main(directory: Path) -> None:
    service_loop.FIRST_PAUSE = service_loop.LAST_PAUSE = 0.001  # channels end very often here
    errors: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(repr(context)))
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: errors.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    settings = Settings(
        timesync=TimeSyncSettings(mode="step"),
        heartbeat=HeartbeatSettings(lambda: ApplicationState.HEALTHY),
        kvp=KvpSettings(directory / "pools"),
        fcopy=FcopySettings([directory / "files"]),
    )

    last = ""

    def heard(event: Event) -> None:
        nonlocal last
        last = str(event)
        if event.kind is EventKind.STOPPED:
            errors.append(str(event))

    services = standard_services(settings)
    vss = next(service for service in services if service.name == "vss")
    fcopy = next(service for service in services if service.name == "fcopy")
    receiver = fcopy._receiver  # type: ignore[attr-defined]
    openers = [
        partial(connect_async, directory / f"{n}.sock", timeout=None, wait=True)
        for n in ("attacked", "honest")
    ]
    async with Agent(services, openers[0], on_event=heard) as agent, Agent([Heartbeat()], openers[1]):
        lines = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
        )
        while await lines.readline():
            facts = {
                "errors": errors,
                "last": last,
                "frozen": vss.frozen,  # type: ignore[attr-defined]
                "descriptors": len(os.listdir("/proc/self/fd")),
                "resident": resident(),
                "tasks": len(asyncio.all_tasks()),
                "ending": len([w for w in receiver._workers._ending if not w.has_ended()]),  # type: ignore[attr-defined]
                "requests": sum(line["counters"]["requests"] for line in agent.stats().values()),
            }
            print(json.dumps(facts), flush=True)


faulthandler.enable()
asyncio.run(main(Path(sys.argv[1])))
