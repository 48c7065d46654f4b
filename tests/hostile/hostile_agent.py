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

import hvring.agent.agent
from hvring.agent import Agent, Effects, Event, EventKind, standard_services
from hvring.ic import ApplicationState
from hvring.services import Heartbeat
from hvring.transport.virtual import connect_async


def resident() -> int:
    """KiB that are this process's own; the rings are not."""
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


async def main(directory: Path) -> None:
    hvring.agent.agent._FIRST_PAUSE = hvring.agent.agent._LAST_PAUSE = 0.001  # channels end very often here
    errors: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(repr(context)))
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: errors.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    effects = Effects(
        pool_directory=directory / "pools",
        allow=[directory / "files"],
        set_clock=True,
        health=lambda: ApplicationState.HEALTHY,
    )

    def heard(event: Event) -> None:
        if event.kind is EventKind.FAILED:
            errors.append(str(event))

    services = standard_services(effects)
    vss = next(service for service in services if service.name == "vss")
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
                "frozen": vss.frozen,  # type: ignore[attr-defined]
                "descriptors": len(os.listdir("/proc/self/fd")),
                "resident": resident(),
                "tasks": len(asyncio.all_tasks()),
                "requests": sum(line["counters"]["requests"] for line in agent.stats().values()),
            }
            print(json.dumps(facts), flush=True)


faulthandler.enable()
asyncio.run(main(Path(sys.argv[1])))
