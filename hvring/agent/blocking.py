# SPDX-License-Identifier: Apache-2.0
"""One service on one channel without asyncio."""

from __future__ import annotations

import select
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
                if exchange.is_blocked:  # wait() would end at once by what cannot be read yet
                    _sleep(channel, exchange.patience())
                else:
                    channel.wait(exchange.patience())
                service.tick()
    finally:
        service.reset()


def _sleep(channel: Channel, seconds: float | None) -> None:
    """Until the doorbell rings, the channel ends or the time is over; None: for ever."""
    poll = select.poll()
    poll.register(channel.fileno(), select.POLLIN)
    poll.poll(None if seconds is None else seconds * 1000)
