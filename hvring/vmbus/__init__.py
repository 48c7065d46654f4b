# SPDX-License-Identifier: Apache-2.0
"""Facts about VMBus and nothing else: GUIDs, offsets, packet types, array layouts."""

from hvring.vmbus.services import (
    BY_CLASS,
    BY_NAME,
    SERVICE_NAMES,
    DeviceFacts,
    ServiceFacts,
)

__all__ = ["BY_CLASS", "BY_NAME", "SERVICE_NAMES", "DeviceFacts", "ServiceFacts"]
