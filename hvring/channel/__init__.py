# SPDX-License-Identifier: Apache-2.0
"""Channels: two rings and a doorbell (PROTOCOL §2)."""

from hvring.channel._channel import ROOM_RECHECK, Channel
from hvring.channel._doorbell import Doorbell, EventfdDoorbell, MonitorDoorbell, UioDoorbell

__all__ = ["ROOM_RECHECK", "Channel", "Doorbell", "EventfdDoorbell", "MonitorDoorbell", "UioDoorbell"]
