# SPDX-License-Identifier: Apache-2.0
"""What kernels do with a service that is bound to uio_hv_generic, by release (PROTOCOL §1.4, §8).

Releases are a hint: distributions carry patches back. They warn and refuse; nothing else depends on them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

Release = tuple[int, int, int]

_MIB: Final = 1 << 20
_MASK_LEFT_ALONE: Final = (6, 17, 3)  # b15b7d2a1b09, on the way to 6.18


@dataclass(frozen=True, slots=True)
class _Backports:
    """The patch levels of one stable series that got b15b7d2a1b09 first, and d062463edf17, which it needs, first."""

    mask: int
    cure: int


# ``mask``: the fixed versions of CVE-2025-40048. ``cure``: the first review list of the stable team that has the
# patch (5.4: the patch of 2025-12-01, in the only release after 5.4.301). Later series had d062463edf17 before.
_SERIES: Final[Mapping[tuple[int, int], _Backports]] = MappingProxyType(
    {
        (5, 4): _Backports(301, 302),
        (5, 10): _Backports(246, 247),
        (5, 15): _Backports(195, 197),
        (6, 1): _Backports(156, 159),
        (6, 6): _Backports(112, 118),
        (6, 12): _Backports(53, 59),
    }
)


# First release, first release without it, what goes wrong.  Where upstream is named, distributions may differ.
_UNCHECKED: Final = (
    (0, 0, 0),
    (5, 12, 0),
    "does not check the lengths of what the host sends before it hands it out.",
)
_UTILS_FAULTS: Final[Mapping[str, tuple[tuple[Release, Release, str], ...]]] = MappingProxyType(
    {
        "kvp": (
            _UNCHECKED,
            ((0, 0, 0), (5, 1, 0), "hands out 32-bit numbers from 2147483648 on as negative ones."),
        ),
        "vss": (
            _UNCHECKED,
            (
                (0, 0, 0),
                (5, 6, 0),
                "tells nobody to thaw when it hibernates; hvring thaws in time by itself.",
            ),
            ((5, 14, 0), (5, 14, 15), "may lose FREEZE of hosts that send more than a page: update it."),
        ),
        "fcopy": (_UNCHECKED,),
    }
)


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
    def serves_fcopy(self) -> bool:
        """Whether hv_utils has a driver for file copy; newer kernels leave it to hv_fcopy_uio_daemon."""
        return self.release < (6, 10, 0)

    @property
    def may_panic(self) -> bool:
        """Whether an interrupt on a sub-channel ends this kernel (Debian bug 1120602)."""
        series = self._backports
        return series is not None and series.mask <= self.release[2] < series.cure

    @property
    def cured_by(self) -> str | None:
        """The first release of this series that does not panic any more; None if none of it ever did."""
        series = self._backports
        return None if series is None else "{}.{}.{}".format(*self.release[:2], series.cure)

    @property
    def masks_itself(self) -> bool:
        """Whether the driver changes the interrupt mask behind user space; the channel finds out by itself."""
        series = self._backports
        return self.release[2] < series.mask if series else self.release < _MASK_LEFT_ALONE

    @property
    def _backports(self) -> _Backports | None:
        return _SERIES.get(self.release[:2])

    @property
    def utils_faults(self) -> dict[str, list[str]]:
        """What hv_utils of this release gets wrong for who serves over its devices, by service (PROTOCOL §10.5)."""
        return {
            service: [
                f"Kernel {self.name} {fault}" for first, last, fault in faults if first <= self.release < last
            ]
            for service, faults in _UTILS_FAULTS.items()
        }

    def memory_per_service(self, ring_size: int) -> int:
        """Bytes that one bound service costs; ``ring_size`` is that of one ring."""
        nic_buffers = (31 + 16) * _MIB if (6, 10, 0) <= self.release < (6, 14, 0) else 0
        return 2 * ring_size + nic_buffers


def running(proc: str | os.PathLike[str] = "/proc") -> Kernel:
    """The kernel that runs here.

    The names of Ubuntu's and Debian's kernels hide the upstream release (``6.1.0-41-amd64`` is 6.1.158); their files
    ``version_signature`` and ``version`` have it.
    """
    name = os.uname().release
    for file_name, pattern in (
        ("version_signature", r"(\S+)\s*$"),
        ("version", r"#.*\bDebian (\d+\.\d+\.\d+)"),
    ):
        try:
            with open(os.path.join(proc, file_name), encoding="utf-8", errors="replace") as file:
                found = re.search(pattern, file.read())
        except OSError:
            continue
        if found is not None and parse(found[1]) != (0, 0, 0):
            return Kernel(name, parse(found[1]))
    return Kernel(name, parse(name))


def parse(text: str) -> Release:
    """``6.12.57+deb13-cloud-amd64`` is (6, 12, 57); text without a number is (0, 0, 0)."""
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    if found is None:
        return (0, 0, 0)
    major, minor, patch = (int(part or 0) for part in found.groups())
    return (major, minor, patch)
