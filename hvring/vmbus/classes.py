# SPDX-License-Identifier: Apache-2.0
"""Classes of VMBus devices beside the six services (PROTOCOL §1.1), for lists and for what must not be taken."""

from __future__ import annotations

from typing import Final

DYNAMIC_MEMORY: Final = "525074dc-8985-46e2-8057-a307dc18a502"
NETWORK: Final = "f8615163-df3e-46c5-913f-f2d2f965ed0e"
SCSI: Final = "ba6163d9-04a1-4d29-b605-72e2ffb1dc7f"
IDE: Final = "32412632-86cb-44a2-9b5c-50d1417354f5"
FIBRE_CHANNEL: Final = "2f9bcc4a-0069-4af3-b76b-6fd0be528cda"
PCI: Final = "44c4f61d-4444-4400-9d52-802e27ede19f"

OTHER_CLASSES: Final = {
    DYNAMIC_MEMORY: "dynamic memory",
    NETWORK: "network adapter",
    SCSI: "SCSI controller",
    IDE: "IDE controller",
    FIBRE_CHANNEL: "Fibre Channel adapter",
    PCI: "PCI pass-through",
    "da0a7802-e377-4aac-8e77-0558eb1073f8": "video",
    "f912ad6d-2b17-48ea-bd65-f927a61c7684": "keyboard",
    "cfa8b69e-5b4a-4cc0-b98b-8ba1a1f3f95a": "mouse",
    "8c2eaf3d-32a7-4b09-ab99-bd1f1c86b501": "Network Direct",
    "276aacf4-ac15-426c-98dd-7521ad3f01fe": "remote desktop",
    "f8e65716-3cb3-4a06-9a60-1889c5cccab5": "activation",
    "3375baf4-9e15-4b30-b765-67acb10d607b": "remote desktop control",
}

MAY_HOLD_DISKS: Final = frozenset((SCSI, IDE, FIBRE_CHANNEL, PCI))
