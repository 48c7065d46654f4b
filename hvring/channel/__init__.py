# SPDX-License-Identifier: Apache-2.0
"""Channels: two rings and a doorbell (PROTOCOL §2)."""

from hvring.channel._channel import Channel
from hvring.channel._doorbell import Doorbell, EventfdDoorbell, MonitorDoorbell, UioDoorbell

__all__ = ["Channel", "Doorbell", "EventfdDoorbell", "MonitorDoorbell", "UioDoorbell"]
