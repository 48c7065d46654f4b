# SPDX-License-Identifier: Apache-2.0
"""The virtual Hyper-V host: test a guest agent without Hyper-V, from Python or from the command line.

async with VirtualHost("/run/user/1000/hv.sock") as host:
    await host.wait_ready("kvp")
    await host.kvp.set("color", "green")
    assert not host.violations

A device of any other class is a coroutine: ``VirtualHost(path, devices={guid: handler})``, where ``handler(channel)``
iterates over packets and sends some; ``echo`` is the simplest.
"""

from hvring.events import Event, EventKind
from hvring.host.device import DeviceChannel, Handler, echo
from hvring.host.errors import (
    GuestStatusError,
    HostError,
    NoAnswerError,
    NotReadyError,
    SourceChangedError,
)
from hvring.host.faults import Faults
from hvring.host.fcopy import CopyReport
from hvring.host.heartbeat import Contact, HeartbeatStatus
from hvring.host.host import Host
from hvring.host.latency import LatencyHistogram
from hvring.host.link import Link
from hvring.host.reports import Violation
from hvring.host.timesync import TimeExchange
from hvring.host.timing import Timing
from hvring.host.virtual_host import VirtualHost
from hvring.host.vss import BackupReport

__all__ = [
    "BackupReport",
    "Contact",
    "CopyReport",
    "DeviceChannel",
    "Event",
    "EventKind",
    "Faults",
    "GuestStatusError",
    "Handler",
    "HeartbeatStatus",
    "Host",
    "HostError",
    "LatencyHistogram",
    "Link",
    "NoAnswerError",
    "NotReadyError",
    "SourceChangedError",
    "TimeExchange",
    "Timing",
    "Violation",
    "VirtualHost",
    "echo",
]
