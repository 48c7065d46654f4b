# SPDX-License-Identifier: Apache-2.0
"""The six services: message in, answer out; what they do to a machine goes through effects handed to them."""

from hvring.services.fcopy import Fcopy
from hvring.services.heartbeat import Heartbeat
from hvring.services.kvp import Kvp
from hvring.services.service import Counters, Reply, Service
from hvring.services.shutdown import Shutdown
from hvring.services.timesync import TimeSync
from hvring.services.vss import Vss

__all__ = ["Counters", "Fcopy", "Heartbeat", "Kvp", "Reply", "Service", "Shutdown", "TimeSync", "Vss"]
