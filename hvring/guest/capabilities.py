# SPDX-License-Identifier: Apache-2.0
"""What this process may do by its capabilities."""

from __future__ import annotations

from enum import IntEnum

from hvring.guest.regular import read_text


class Capability(IntEnum):
    """By its number in the kernel."""

    DAC_OVERRIDE = 1
    DAC_READ_SEARCH = 2
    SYS_ADMIN = 21


def has_any(*wanted: Capability, proc: str = "/proc") -> bool:
    """Whether one of these is effective now."""
    for line in read_text(f"{proc}/self/status").splitlines():
        if line.startswith("CapEff:"):
            effective = int(line.split()[1], 16)
            return any(effective >> one & 1 for one in wanted)
    return False
