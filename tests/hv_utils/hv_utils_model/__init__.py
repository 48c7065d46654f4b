# SPDX-License-Identifier: Apache-2.0
"""The kernel's side of /dev/vmbus/hv_kvp, hv_vss and hv_fcopy in plain Python (PROTOCOL §10.2 to §10.5).

Two ends per service: a :class:`File` for user space, ``host_sends`` and ``answers`` for the host.
"""

from __future__ import annotations

import errno
import os

from hv_utils_model.device import Device
from hv_utils_model.fcopy import FcopyDevice
from hv_utils_model.file import Blocks, File, KernelBug
from hv_utils_model.kernels import DEBIAN_12, DEBIAN_13, OLD, Kernel
from hv_utils_model.kvp import KvpDevice
from hv_utils_model.states import FAIL, FREEZE_LIMIT, LIMIT, Clock, State
from hv_utils_model.vss import VssDevice

__all__ = [
    "DEBIAN_12",
    "DEBIAN_13",
    "FAIL",
    "FREEZE_LIMIT",
    "LIMIT",
    "OLD",
    "Blocks",
    "Clock",
    "Device",
    "FcopyDevice",
    "File",
    "HvUtils",
    "Kernel",
    "KernelBug",
    "KvpDevice",
    "State",
    "VssDevice",
]


class HvUtils:
    """One loaded hv_utils: its devices by name, and their common clock, which only :meth:`advance` moves."""

    def __init__(self, kernel: Kernel = DEBIAN_12) -> None:
        self.clock = Clock()
        self.devices: dict[str, Device] = {
            "kvp": KvpDevice(kernel, self.clock),
            "vss": VssDevice(kernel, self.clock),
        }
        if kernel.fcopy:
            self.devices["fcopy"] = FcopyDevice(kernel, self.clock)

    def __getitem__(self, name: str) -> Device:
        return self.devices[name]

    def nodes(self) -> set[str]:
        """What /dev/vmbus lists."""
        return {f"hv_{name}" for name, device in self.devices.items() if device.node}

    def open(self, name: str) -> File:
        """As open(2) on the node of ``name``: OSError with ENOENT, EBUSY or EBADF."""
        if name not in self.devices:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), f"/dev/vmbus/hv_{name}")
        return self.devices[name].open()

    def advance(self, seconds: float) -> None:
        """Let time pass, and each limit that falls into it take effect at its moment."""
        self.clock.advance(seconds, self.devices.values())

    def close(self) -> None:
        """The end of a test: whoever still has a file open dies."""
        for device in self.devices.values():
            if device.file is not None:
                device.file.close()
