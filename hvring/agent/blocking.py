# SPDX-License-Identifier: Apache-2.0
"""One service on one channel without asyncio."""

from __future__ import annotations

from collections.abc import Callable

from hvring.agent.exchange import Exchange
from hvring.channel import Channel
from hvring.services import Service


def serve(service: Service, channel: Channel, *, stop: Callable[[], bool] | None = None) -> None:
    """Answer the host on ``channel`` until it is rescinded, or until ``stop()`` is true after a wake-up.

    Blocks the calling thread.  Raises ChannelRescindedError when the host takes the channel back, RingCorruptError
    when it breaks the ring.  Whatever the end, nothing that the service began is left half done.
    """
    exchange = Exchange(channel, service)
    service.reset()
    try:
        while stop is None or not stop():
            if not exchange.pump():
                channel.wait(exchange.patience())
                service.tick()
    finally:
        service.reset()
