# SPDX-License-Identifier: Apache-2.0
"""The six integration services, each described in one place (PROTOCOL §1.1, §1.5, §3.2, §3.4).

What agent, host, command line and doctor need to know of a service is here; what its messages look like is in its
module of :mod:`hvring.ic`, with the versions that a guest speaks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FCOPY_RING_SIZE: Final = 0x5000
DEFAULT_RING_SIZE: Final = 0x200000

VersionPair = tuple[int, int]
"""A framework or message version, major and minor."""


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What identifies a device on VMBus; GUIDs in lower case without braces.

    ``ring_size``: bytes of ONE ring, control page included, as kernels with 0315fef2aff9 choose it.
    """

    name: str
    class_guid: str
    instance_guid: str
    title: str
    ring_size: int = DEFAULT_RING_SIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceFacts(DeviceFacts):
    """One integration service, which has the same instance GUID on every VM.

    ``host_frameworks`` and ``host_versions``: what a Microsoft host offers, oldest first.  ``driver``: the kernel's
    own.  ``node``: the character device over which that driver hands requests to a daemon; "" where it answers by
    itself.  ``daemons`` and ``units``: the daemon's names in the distributions, as programs and as systemd's units.
    ``in_confidential_vms``: whether hosts offer it to VMs that are isolated from them.  ``only_if_named``: taking it
    from the kernel costs something that others may rely on, so that it is not taken along with the others.
    """

    message_type: int
    host_versions: tuple[VersionPair, ...]
    host_frameworks: tuple[VersionPair, ...] = ((1, 0), (3, 0))
    driver: str = "hv_utils"
    node: str = ""
    daemons: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    in_confidential_vms: bool = True
    only_if_named: bool = False


_ALL: Final = (
    ServiceFacts(
        name="shutdown",
        class_guid="0e0b6031-5213-4934-818b-38d90ced39db",
        instance_guid="b6650ff7-33bc-4840-8048-e0676786f393",
        title="Operating system shutdown",
        message_type=3,
        host_versions=((1, 0), (3, 0), (3, 1), (3, 2)),
    ),
    ServiceFacts(
        name="timesync",
        class_guid="9527e630-d0ae-497b-adce-e80ab0175caf",
        instance_guid="2dd1ce17-079e-403c-b352-a1921ee207ee",
        title="Time synchronization",
        message_type=4,
        host_versions=((1, 0), (3, 0), (4, 0)),
        # The kernel's PTP clock of Hyper-V, which chrony reads, goes with its driver.
        only_if_named=True,
    ),
    ServiceFacts(
        name="heartbeat",
        class_guid="57164f39-9115-4e78-ab55-382f3bd5422d",
        instance_guid="fd149e91-82e0-4a7d-afa6-2a4166cbd7c0",
        title="Heartbeat",
        message_type=1,
        host_versions=((3, 0), (3, 1)),
    ),
    ServiceFacts(
        name="kvp",
        class_guid="a9a0f4e7-5a45-4d96-b827-8a841e8c03e6",
        instance_guid="242ff919-07db-4180-9c2e-b86cb68c8c55",
        title="Data exchange",
        message_type=2,
        host_versions=((3, 0), (4, 0), (5, 0)),
        node="/dev/vmbus/hv_kvp",
        daemons=("hv_kvp_daemon", "hypervkvpd"),
        units=("hv-kvp-daemon.service", "hypervkvpd.service", "hv_kvp_daemon.service"),
        in_confidential_vms=False,
    ),
    ServiceFacts(
        name="vss",
        class_guid="35fa2e29-ea23-4236-96ae-3a6ebacba440",
        instance_guid="2450ee40-33bf-4fbd-892e-9fb06e9214cf",
        title="Backup (volume shadow copy)",
        message_type=5,
        host_versions=((4, 0), (5, 0), (6, 0), (7, 0)),
        node="/dev/vmbus/hv_vss",
        daemons=("hv_vss_daemon", "hypervvssd"),
        units=("hv-vss-daemon.service", "hypervvssd.service", "hv_vss_daemon.service"),
        in_confidential_vms=False,
    ),
    ServiceFacts(
        name="fcopy",
        class_guid="34d14be3-dee4-41c8-9ae7-6b174977c192",
        instance_guid="eb765408-105f-49b6-b4aa-c123b64d17d4",
        title="Guest services (file copy)",
        ring_size=FCOPY_RING_SIZE,
        message_type=7,
        host_versions=((1, 1),),
        # From kernel 6.10 on there is neither driver nor node, and the daemon uses uio_hv_generic.
        node="/dev/vmbus/hv_fcopy",
        daemons=("hv_fcopy_daemon", "hypervfcopyd", "hv_fcopy_uio_daemon"),
        units=(
            "hv-fcopy-daemon.service",
            "hypervfcopyd.service",
            "hv_fcopy_daemon.service",
            "hv_fcopy_uio_daemon.service",
        ),
        in_confidential_vms=False,
    ),
)

BY_NAME: Final = {s.name: s for s in _ALL}
BY_CLASS: Final = {s.class_guid: s for s in _ALL}
SERVICE_NAMES: Final = tuple(BY_NAME)
