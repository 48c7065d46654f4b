# SPDX-License-Identifier: Apache-2.0
"""What can go wrong with a verb of the virtual host."""

from __future__ import annotations

from hvring.errors import HvringError
from hvring.ic import Status


class HostError(HvringError):
    """The host could not do what it was asked to do."""


class NotReadyError(HostError):
    """No guest is attached, it agreed to no version yet, or it went away during the request."""


class NoAnswerError(HostError):
    """The guest did not answer in time."""


class SourceChangedError(HostError):
    """The file that was to be copied is not as long any more as the guest was told, or longer."""


class GuestStatusError(HostError):
    """The guest answered by the rules with a ``status`` that is not success (PROTOCOL §3.3)."""

    def __init__(self, service: str, request: str, status: int) -> None:
        super().__init__(f"{service}: the guest answered {request} with {status_name(status)}")
        self.service = service
        self.request = request
        self.status = status


def status_name(status: int) -> str:
    """``DISK_FULL (0x80070070)``; an unknown code is only a number."""
    try:
        return f"{Status(status).name} ({status:#010x})"
    except ValueError:
        return f"status {status:#010x}"
