# SPDX-License-Identifier: Apache-2.0
"""The six services: message in, answer out; what they do to a machine goes through effects handed to them."""

from __future__ import annotations

from typing import Final

from hvring.services.base import IntegrationService, Response, Result
from hvring.services.fcopy import Fcopy
from hvring.services.heartbeat import Heartbeat
from hvring.services.kvp import Kvp
from hvring.services.service import Answer, Counters, Reply, Service
from hvring.services.shutdown import Shutdown
from hvring.services.timesync import TimeSync
from hvring.services.vss import Vss

SERVICES: Final[tuple[type[Service], ...]] = (Shutdown, TimeSync, Heartbeat, Kvp, Vss, Fcopy)

__all__ = [
    "SERVICES",
    "Answer",
    "Counters",
    "Fcopy",
    "Heartbeat",
    "IntegrationService",
    "Kvp",
    "Reply",
    "Response",
    "Result",
    "Service",
    "Shutdown",
    "TimeSync",
    "Vss",
]
