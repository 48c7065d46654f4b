# SPDX-License-Identifier: Apache-2.0
"""The datagrams of the virtual endpoint and the descriptors that travel with them; no waiting, no mapping.

The guest sends ``{"hvring": 1, "open": "<service name or class GUID>"}``; the host answers with an offer
and three descriptors, or with ``{"hvring": 1, "error": "<why>"}``. The memory must be a memfd of ordinary pages
that is sealed against shrinking, or can be: the guest adds the seal. Both eventfds are counters, not
semaphores (PROTOCOL §9). Unknown keys are ignored on both sides,
so that either end may grow. Two keys are additions that both ends may leave out: a request's ``"wait":
true`` asks the host to hold its answer until the service is offered and free, and a refusal's ``"retry":
false`` says that asking again is useless.
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass
from typing import Any, Final

from hvring.errors import EndpointError
from hvring.vmbus.guids import normal_guid

VERSION: Final = 1
MAX_DATAGRAM: Final = 4096
DESCRIPTORS: Final = 3  # ring memory, guest-to-host event, host-to-guest event
PAGE: Final = 4096
# Far above any kernel's choice (PROTOCOL §1.5) and far below the 32-bit indices.
MAX_RING_SIZE: Final = 1 << 28


class EndpointUnavailableError(EndpointError):
    """Not now, but perhaps later: no host listens, it went away, or the service is not to be had."""


@dataclass(frozen=True, slots=True)
class OpenRequest:
    """The guest's only datagram: which service it wants, by name or class GUID."""

    service: str
    wait: bool = False

    def encode(self) -> bytes:
        """The datagram."""
        fields: dict[str, Any] = {"hvring": VERSION, "open": self.service}
        if self.wait:
            fields["wait"] = True
        return json.dumps(fields).encode()

    @classmethod
    def decode(cls, data: bytes) -> OpenRequest:
        """Raises EndpointError that names what is wrong with the datagram."""
        fields = _fields(data)
        service = _text(fields, "open")
        wait = fields.get("wait", False)
        if not isinstance(wait, bool):
            raise EndpointError("the key 'wait' is not true or false")
        return cls(service, wait)


@dataclass(frozen=True, slots=True)
class OfferReply:
    """The host's answer to a request that it grants; ``ring_size`` is that of ONE ring, all included."""

    class_guid: str
    instance_guid: str
    ring_size: int

    def encode(self) -> bytes:
        """The datagram, without the descriptors that go with it."""
        fields = {
            "hvring": VERSION,
            "class": self.class_guid,
            "instance": self.instance_guid,
            "ring_size": self.ring_size,
        }
        return json.dumps(fields).encode()

    @classmethod
    def decode(cls, data: bytes) -> OfferReply:
        """EndpointUnavailableError for a refusal, EndpointError for an answer that breaks the rules."""
        fields = _fields(data)
        if "error" in fields:
            reason = _text(fields, "error", limit=MAX_DATAGRAM)
            kind = EndpointError if fields.get("retry") is False else EndpointUnavailableError
            raise kind(f"the host refused: {reason}")
        return cls(normal_guid(_text(fields, "class")), _text(fields, "instance"), checked_ring_size(fields))


def refusal(reason: str, *, retry: bool = True) -> bytes:
    """The datagram by which a host refuses."""
    fields: dict[str, Any] = {"hvring": VERSION, "error": reason}
    if not retry:
        fields["retry"] = False
    return json.dumps(fields).encode()


def checked_ring_size(fields: dict[str, Any]) -> int:
    """The key ``ring_size``: pages, with room for a control page and some data (PROTOCOL §2.1)."""
    size = fields.get("ring_size")
    if isinstance(size, bool) or not isinstance(size, int):
        raise EndpointError("the key 'ring_size' is missing or not an integer")
    if size % PAGE or not 2 * PAGE <= size <= MAX_RING_SIZE:
        raise EndpointError(
            f"ring_size {size} is not a multiple of {PAGE} from {2 * PAGE} to {MAX_RING_SIZE}"
        )
    return size


def receive_offer(connection: socket.socket) -> tuple[bytes, list[int]]:
    """One datagram and its descriptors; ``b""`` at the end. BlockingIOError when none is there.

    The caller owns the descriptors. Raises EndpointError, with every received descriptor closed, if the
    datagram or the list of descriptors was cut short.
    """
    data, descriptors, flags, _ = socket.recv_fds(
        connection, MAX_DATAGRAM, DESCRIPTORS + 1, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
    )
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        came = len(descriptors)
        close_all(descriptors)
        if not flags & socket.MSG_TRUNC and came <= DESCRIPTORS:
            raise EndpointUnavailableError("this process has no room for the descriptors of the host's offer")
        what = "is longer than" if flags & socket.MSG_TRUNC else "brings too many descriptors for"
        raise EndpointError(f"the host's datagram {what} the endpoint's rules")
    return data, descriptors


def close_all(descriptors: list[int]) -> None:
    """Close each descriptor and empty the list."""
    while descriptors:
        os.close(descriptors.pop())


def _fields(data: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        raise EndpointError(f"not a JSON datagram: {data[:60]!r}")
    if not isinstance(fields, dict):
        raise EndpointError(f"not a JSON object: {data[:60]!r}")
    version = fields.get("hvring")
    if isinstance(version, bool) or version != VERSION:
        raise EndpointError(f"version of the endpoint is {version!r}, this side speaks {VERSION}")
    return fields


def _text(fields: dict[str, Any], key: str, limit: int = 100) -> str:
    value = fields.get(key)
    if not isinstance(value, str) or not value:
        raise EndpointError(f"the key {key!r} is missing or not a text")
    return value[:limit]
