# SPDX-License-Identifier: Apache-2.0
"""An agent that freezes the test's mounts and answers heartbeats, as a process of its own, until SIGTERM.

Started by test_freeze_beside_others.py inside a private mount namespace.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from functools import partial

from freezer_process import restricted

from hvring.agent import Agent
from hvring.services import Heartbeat, Vss
from hvring.transport.virtual import connect_async


async def main() -> None:
    settings = json.loads(sys.argv[1])
    opener = partial(connect_async, settings.pop("host"), timeout=None, wait=True)
    freezer = restricted(**settings)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    async with Agent([Vss(freezer), Heartbeat()], opener, on_event=lambda event: print(event, flush=True)):
        await ended.wait()


if __name__ == "__main__":
    asyncio.run(main())
