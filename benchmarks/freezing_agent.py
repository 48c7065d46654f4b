# SPDX-License-Identifier: Apache-2.0
"""An agent with the real freezer and its guardian, and an empty plan: nothing of this machine can be frozen.

`freezing_agent.py SOCKET SERVICE...`, until SIGTERM.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from functools import partial

from hvring.agent import Agent, Settings, standard_services
from hvring.guest.freezer import SystemFreezer
from hvring.guest.mounts import Plan
from hvring.services import Vss
from hvring.transport.virtual import connect_async


async def main(path: str, *names: str) -> None:
    services = standard_services(Settings(), (name for name in names if name != "vss"))
    freezer = SystemFreezer(lambda: Plan((), ()), blocking=False)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    async with Agent([*services, Vss(freezer)], partial(connect_async, path, timeout=None, wait=True)):
        await ended.wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
