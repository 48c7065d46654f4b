# SPDX-License-Identifier: Apache-2.0
"""A channel over an open uio file of uio_hv_generic and the mapping of its rings (PROTOCOL §1.4, §1.6)."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable, Iterable
from typing import Final

from hvring.channel import Channel, UioDoorbell
from hvring.transport.errors import DeviceFaultError
from hvring.transport.uio_device import UioDevice

RECHECK_EVERY: Final = 1.0  # seconds; only where the kernel changes the interrupt mask itself
INTERRUPT_MASK: Final = 8  # its offset in a ring


def channel_over(
    uio: UioDevice,
    rings: mmap.mmap,
    make_doorbell: Callable[[int], UioDoorbell],
    *,
    what: str,
    name: str,
    types: Iterable[int] | None,
    unmap: Callable[[], None],
) -> Channel:
    """Takes ``uio`` over, and at its end calls ``unmap``.

    ``rings``: the guest-to-host ring, then the other, of equal size; ``make_doorbell(ring_size)`` makes the doorbell,
    which takes the descriptor of ``uio`` over.  Raises DeviceFaultError, about ``what``, and what ``make_doorbell``
    raises, with ``uio`` as it was; RingCorruptError, with ``uio`` closed.
    """
    size, page = len(rings) // 2, os.sysconf("SC_PAGE_SIZE")
    if size % page or size < 2 * page:
        raise DeviceFaultError(f"{what} has rings of {size} bytes, no number of pages")
    # Drivers before b15b7d2a1b09 mask at open and at every interrupt, and can lose a wake-up by it (PROTOCOL §1.4).
    kernel_masks = struct.unpack_from("<I", rings, size + INTERRUPT_MASK)[0] != 0
    doorbell = make_doorbell(size)
    uio.detach()
    try:
        return Channel(
            rings,
            ring_size=size,
            tx_offset=0,
            rx_offset=size,
            doorbell=doorbell,
            control_size=page,
            types=types,
            name=name,
            on_close=unmap,
            recheck_every=RECHECK_EVERY if kernel_masks else 0.0,
        )
    except BaseException:
        # It has the descriptor and the pages, and the traceback would keep it.
        del doorbell
        raise
