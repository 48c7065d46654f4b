# SPDX-License-Identifier: Apache-2.0
"""The limit of an agent in Python: an event loop that sends every request back, and does nothing else.

`echo_asyncio.py SOCKET SERVICE...`, until SIGTERM.
"""

from __future__ import annotations

import asyncio
import signal
import sys

from hvring import Channel
from hvring.transport.virtual import connect_async

FLAGS, RESPONSE = 25, 5


def echo(channel: Channel) -> None:
    """What is there, and asks for a wake-up when more comes."""
    channel.mask()
    while True:
        packet = channel.recv()
        if packet is None:
            if channel.arm() == 0:
                return
            channel.mask()
        else:
            answer = bytearray(packet.payload)
            answer[FLAGS] = RESPONSE
            channel.send(answer, transaction_id=packet.transaction_id)


async def main(path: str, *names: str) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    for name in names:
        channel = await connect_async(path, name, timeout=None, wait=True)
        loop.add_reader(channel.fileno(), echo, channel)
        echo(channel)
    await ended.wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
