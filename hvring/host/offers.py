# SPDX-License-Identifier: Apache-2.0
"""What this host says in negotiation: the versions that a Microsoft host offers (PROTOCOL §3.4)."""

from __future__ import annotations

from hvring.ic import MessageType, NegotiateRequest, Version
from hvring.vmbus import BY_NAME


def offer(service: str) -> NegotiateRequest:
    """The negotiation that a host begins with."""
    facts = BY_NAME[service]
    return NegotiateRequest(
        tuple(Version(*pair) for pair in facts.host_frameworks),
        tuple(Version(*pair) for pair in facts.host_versions),
    )


def message_type(service: str) -> MessageType:
    """Of every other request."""
    return MessageType(BY_NAME[service].message_type)
