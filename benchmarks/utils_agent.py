# SPDX-License-Identifier: Apache-2.0
"""An agent for one service over hv_utils' device, which is a socket: what the in-tree daemon has, too.

`utils_agent.py DESCRIPTOR SERVICE FOLDER`, until SIGTERM; pools and files go into the folder.
"""

from __future__ import annotations

import asyncio
import select
import signal
import socket
import sys

from hvring.agent import Agent, FcopySettings, KvpSettings, Settings, standard_services
from hvring.transport.utils import UtilsChannel


class SocketFile:
    """hvring.transport.utils.DeviceFile."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self.fileno = self._socket.fileno
        self.read = self._socket.recv
        self.write = self._socket.send
        self.close = self._socket.close

    def poll(self) -> int:
        ready = self._poll.poll(0)
        return ready[0][1] if ready else 0


async def main(descriptor: str, name: str, folder: str) -> None:
    settings = Settings(kvp=KvpSettings(pool_directory=folder), fcopy=FcopySettings(allow=[folder]))

    async def opener(service: str) -> UtilsChannel:
        return UtilsChannel(SocketFile(int(descriptor)), service)

    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    async with Agent(standard_services(settings, [name]), opener):
        await ended.wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
