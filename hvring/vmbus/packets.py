# SPDX-License-Identifier: Apache-2.0
"""Packet types and flags of a VMBus ring (PROTOCOL §2.2, §2.3)."""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class PacketType(IntEnum):
    """The types that hvring knows by name; a ring may carry others, which readers skip."""

    IN_BAND = 6
    TRANSFER_PAGES = 7
    GPA_DIRECT = 9
    COMPLETION = 11


COMPLETION_REQUESTED: Final = 1  # descriptor flag, bit 0
