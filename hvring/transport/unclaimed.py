# SPDX-License-Identifier: Apache-2.0
"""Which service hv_utils leaves to user space: by what it says itself, and only else by the kernel's number."""

from __future__ import annotations

import os
from typing import Final

from hvring.transport import modules
from hvring.transport.kernels import Kernel
from hvring.transport.sysfs import UTILS_DRIVER, Bus, Device

#: hv_utils gave up this one in 6.10, and distributions carry that back.
_GIVEN_UP: Final = "fcopy"


def is_unclaimed(device: Device, bus: Bus, kernel: Kernel) -> bool:
    """Whether hv_utils is there and does not drive this service, so that nobody loses it when it is bound.

    A device that has no driver for a moment, as between an unbind and a bind, is not meant.
    """
    if device.service != _GIVEN_UP or device.driver is not None:
        return False
    if not os.path.isdir(bus.driver(UTILS_DRIVER)):
        return False
    says = modules.claims(UTILS_DRIVER, device.class_guid, kernel.name)
    return not (kernel.serves_fcopy if says is None else says)
