# SPDX-License-Identifier: Apache-2.0
"""Windows' codes for why a machine is shut down, in words (SHTDN_REASON, a field of PROTOCOL §4.1)."""

from __future__ import annotations

from typing import Final

_PLANNED: Final = 0x80000000
_USER_DEFINED: Final = 0x40000000

_MAJOR: Final = {
    0x00: "other",
    0x01: "hardware",
    0x02: "operating system",
    0x03: "software",
    0x04: "application",
    0x05: "system",
    0x06: "power",
    0x07: "legacy API",
}
_MINOR: Final = {
    0x01: "maintenance",
    0x02: "installation",
    0x03: "upgrade",
    0x04: "reconfiguration",
    0x05: "hung",
    0x06: "unstable",
    0x07: "disk",
    0x08: "processor",
    0x09: "network card",
    0x0A: "power supply",
    0x0B: "cord unplugged",
    0x0C: "environment",
    0x0D: "hardware driver",
    0x0E: "other driver",
    0x0F: "stop error",
    0x10: "service pack",
    0x11: "hot fix",
    0x12: "security fix",
    0x13: "security",
    0x14: "network connectivity",
    0x15: "WMI",
    0x16: "service pack removed",
    0x17: "hot fix removed",
    0x18: "security fix removed",
    0x19: "MMC",
    0x1A: "system restore",
    0x20: "terminal services",
    0x21: "domain controller promoted",
    0x22: "domain controller demoted",
}


def words(code: int) -> str:
    """As "planned, operating system: upgrade"; never raises, whatever the 32 bits are."""
    major, minor = code >> 16 & 0xFF, code & 0xFFFF
    known = _MAJOR.get(major, f"major {major:#x}")
    if minor not in (0, 0xFF):  # other, none
        known += ": " + _MINOR.get(minor, f"minor {minor:#x}")
    planned = "planned" if code & _PLANNED else "unplanned"
    return f"{planned}, {'defined by the user, ' if code & _USER_DEFINED else ''}{known}"
