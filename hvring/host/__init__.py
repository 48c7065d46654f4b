# SPDX-License-Identifier: Apache-2.0
"""The virtual Hyper-V host: test a guest agent without Hyper-V, from Python or from the command line.

async with VirtualHost("/run/user/1000/hv.sock") as host:
    await host.wait_ready("kvp")
    await host.kvp.set("color", "green")
    assert not host.violations
"""

from hvring.host.errors import GuestStatusError, HostError, NoAnswerError, NotReadyError
from hvring.host.events import Event, Violation
from hvring.host.fcopy import CopyReport
from hvring.host.heartbeat import Contact, HeartbeatStatus
from hvring.host.host import Host
from hvring.host.link import Link
from hvring.host.measure import Measure
from hvring.host.raw import Raw
from hvring.host.timesync import TimeExchange
from hvring.host.timing import Timing
from hvring.host.virtual_host import VirtualHost
from hvring.host.vss import BackupReport

__all__ = [
    "BackupReport",
    "Contact",
    "CopyReport",
    "Event",
    "GuestStatusError",
    "HeartbeatStatus",
    "Host",
    "HostError",
    "Link",
    "Measure",
    "NoAnswerError",
    "NotReadyError",
    "Raw",
    "TimeExchange",
    "Timing",
    "Violation",
    "VirtualHost",
]
