# SPDX-License-Identifier: Apache-2.0
"""One service on one channel without asyncio."""

from __future__ import annotations

import select
from collections.abc import Callable

from hvring.agent.channel import MessageChannel, ServiceChannel
from hvring.agent.message_responder import responder_for
from hvring.services.service import Service


def serve(
    service: Service, channel: ServiceChannel | MessageChannel, *, stop: Callable[[], bool] | None = None
) -> None:
    """Answer the host on ``channel`` until it is rescinded, or until ``stop()`` is true after a wake-up.

    Blocks the calling thread.  Raises ChannelRescindedError when the host takes the channel back, RingCorruptError
    when it breaks the ring, DeviceFaultError when the kernel does not take an
    answer.  Whatever the end, nothing that the service began is left half done.
    """
    responder = responder_for(channel, service)
    service.reset()
    try:
        while stop is None or not stop():
            if not responder.respond():
                others = responder.descriptors()
                if others or responder.is_blocked:  # wait() would end at once by what cannot be read yet
                    _sleep({channel.fileno(), *others}, responder.timeout())
                else:
                    channel.wait(responder.timeout())
                service.tick()
    finally:
        responder.end()


def _sleep(descriptors: set[int], seconds: float | None) -> None:
    """Until one is readable or has ended, or the time is over; None: for ever."""
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    poll.poll(None if seconds is None else seconds * 1000)
