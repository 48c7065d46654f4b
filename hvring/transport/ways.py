# SPDX-License-Identifier: Apache-2.0
"""Which way a service is served: by what is there, never by the kernel's version (PROTOCOL §1.3, §10).

========================================  ==============================================
what is there                             the way
========================================  ==============================================
bound to uio_hv_generic                   uio
hv_utils has it, with a node              utils
hv_utils has it, without a node           none: the kernel answers by itself
hv_utils is there and does not drive it   uio, once it is bound (file copy from 6.10 on)
neither                                   utils, once there is a node
========================================  ==============================================
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from functools import partial

from hvring.channel import Channel
from hvring.transport import kernels, uio, utils
from hvring.transport.errors import DeviceError
from hvring.transport.sysfs import UIO_DRIVER, Bus
from hvring.transport.unclaimed import is_unclaimed
from hvring.transport.utils import UtilsChannel
from hvring.transport.waiting import opened_async
from hvring.vmbus import BY_NAME

__all__ = ["Via", "open_channel_async", "open_now"]


class Via(Enum):
    """Over uio_hv_generic's rings, over hv_utils' character devices, or whichever is there."""

    AUTO = "auto"
    UIO = "uio"
    UTILS = "utils"


def open_now(service: str, *, bus: Bus, via: Via = Via.AUTO) -> Channel | UtilsChannel:
    """One attempt, without waiting. Raises DeviceError."""
    if via is Via.AUTO:
        has_node = service in BY_NAME and bool(BY_NAME[service].node)
        device = bus.find(service)
        is_bound = device.driver == UIO_DRIVER or is_unclaimed(device, bus, kernels.running())
        via = Via.UIO if is_bound or not has_node else Via.UTILS
    return uio.open_now(service, bus=bus) if via is Via.UIO else utils.open_now(service, bus=bus)


async def open_channel_async(
    service: str,
    *,
    timeout: float | None = 5.0,
    wait: bool = False,
    bus: Bus | None = None,
    via: Via = Via.AUTO,
    prepare: Callable[[], object] | None = None,
    on_wait: Callable[[DeviceError], object] | None = None,
) -> Channel | UtilsChannel:
    """Open a service by the way that is there, for asyncio; may be cancelled at any time.

    As :func:`hvring.transport.uio.open_channel_async`. ``on_wait`` hears why it is not open yet, and whenever that
    changes.
    """
    attempt = partial(open_now, service, bus=bus or Bus(), via=via)
    return await opened_async(attempt, timeout=timeout, wait=wait, prepare=prepare, on_wait=on_wait)
