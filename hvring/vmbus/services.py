# SPDX-License-Identifier: Apache-2.0
"""The six integration services: names, class and instance GUIDs, ring sizes (PROTOCOL §1.1, §1.5)."""

from __future__ import annotations

from typing import Final, NamedTuple


class ServiceIds(NamedTuple):
    """What identifies one service on every VM; GUIDs in lower case without braces."""

    name: str
    class_guid: str
    instance_guid: str
    title: str


_ALL: Final = (
    ServiceIds(
        "shutdown",
        "0e0b6031-5213-4934-818b-38d90ced39db",
        "b6650ff7-33bc-4840-8048-e0676786f393",
        "Operating system shutdown",
    ),
    ServiceIds(
        "timesync",
        "9527e630-d0ae-497b-adce-e80ab0175caf",
        "2dd1ce17-079e-403c-b352-a1921ee207ee",
        "Time synchronization",
    ),
    ServiceIds(
        "heartbeat",
        "57164f39-9115-4e78-ab55-382f3bd5422d",
        "fd149e91-82e0-4a7d-afa6-2a4166cbd7c0",
        "Heartbeat",
    ),
    ServiceIds(
        "kvp",
        "a9a0f4e7-5a45-4d96-b827-8a841e8c03e6",
        "242ff919-07db-4180-9c2e-b86cb68c8c55",
        "Data exchange",
    ),
    ServiceIds(
        "vss",
        "35fa2e29-ea23-4236-96ae-3a6ebacba440",
        "2450ee40-33bf-4fbd-892e-9fb06e9214cf",
        "Backup (volume shadow copy)",
    ),
    ServiceIds(
        "fcopy",
        "34d14be3-dee4-41c8-9ae7-6b174977c192",
        "eb765408-105f-49b6-b4aa-c123b64d17d4",
        "Guest services (file copy)",
    ),
)

BY_NAME: Final = {s.name: s for s in _ALL}
BY_CLASS: Final = {s.class_guid: s for s in _ALL}
SERVICE_NAMES: Final = tuple(BY_NAME)

FCOPY_RING_SIZE: Final = 0x5000
DEFAULT_RING_SIZE: Final = 0x200000


def ring_size_for(name: str) -> int:
    """Bytes of ONE ring, control page included, as kernels with 0315fef2aff9 choose it (PROTOCOL §1.5)."""
    return FCOPY_RING_SIZE if name == "fcopy" else DEFAULT_RING_SIZE
