# SPDX-License-Identifier: Apache-2.0
"""What kernels do with a service that is bound to uio_hv_generic, by release (PROTOCOL §1.4, §8).

Releases are a hint: distributions carry patches back. They warn and refuse; nothing else depends on them.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Final

Release = tuple[int, int, int]

_MIB: Final = 1 << 20
# b15b7d2a1b09 without d062463edf17: 6.12.57 was reported; its neighbours are inferred from the dates of the backports
_PANICS: Final = ((6, 12, 54), (6, 12, 59))


@dataclass(frozen=True, slots=True)
class Kernel:
    """``release``: upstream's number, as far as it can be told from ``name``."""

    name: str
    release: Release

    @property
    def takes_services(self) -> bool:
        """Whether uio_hv_generic takes channels without a monitor bit, as all six services are."""
        return self.release >= (6, 10, 0)

    @property
    def may_panic(self) -> bool:
        """Whether an interrupt on a sub-channel ends this kernel (Debian bug 1120602)."""
        return _PANICS[0] <= self.release <= _PANICS[1]

    @property
    def masks_itself(self) -> bool:
        """Whether the driver changes the interrupt mask behind user space; the channel finds out by itself."""
        return self.release < _PANICS[0] or (6, 13, 0) <= self.release < (6, 17, 5)

    def memory_per_service(self, ring_size: int) -> int:
        """Bytes that one bound service costs; ``ring_size`` is that of one ring."""
        nic_buffers = (31 + 16) * _MIB if (6, 10, 0) <= self.release < (6, 14, 0) else 0
        return 2 * ring_size + nic_buffers


def running(proc: str | os.PathLike[str] = "/proc") -> Kernel:
    """The kernel that runs here; Ubuntu's own name hides the upstream release, /proc/version_signature has it."""
    name = os.uname().release
    try:
        with open(os.path.join(proc, "version_signature"), encoding="ascii") as file:
            upstream = file.read().split()[-1]
    except (OSError, IndexError):
        upstream = name
    return Kernel(name, parse(upstream))


def parse(text: str) -> Release:
    """``6.12.57+deb13-cloud-amd64`` is (6, 12, 57); text without a number is (0, 0, 0)."""
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    if found is None:
        return (0, 0, 0)
    major, minor, patch = (int(part or 0) for part in found.groups())
    return (major, minor, patch)
