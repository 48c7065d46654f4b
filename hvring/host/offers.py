# SPDX-License-Identifier: Apache-2.0
"""What a Microsoft host offers in negotiation, oldest first (PROTOCOL §3.4), and the message types."""

from __future__ import annotations

from typing import Final, NamedTuple

from hvring.ic import MessageType, Version


class Dialect(NamedTuple):
    """The message type of a service and the versions that the host speaks."""

    type: MessageType
    frameworks: tuple[Version, ...]
    versions: tuple[Version, ...]


def _versions(*texts: str) -> tuple[Version, ...]:
    return tuple(Version(*map(int, text.split("."))) for text in texts)


_FRAMEWORKS: Final = _versions("1.0", "3.0")

DIALECTS: Final = {
    "shutdown": Dialect(MessageType.SHUTDOWN, _FRAMEWORKS, _versions("1.0", "3.0", "3.1", "3.2")),
    "timesync": Dialect(MessageType.TIMESYNC, _FRAMEWORKS, _versions("1.0", "3.0", "4.0")),
    "heartbeat": Dialect(MessageType.HEARTBEAT, _FRAMEWORKS, _versions("3.0", "3.1")),
    "kvp": Dialect(MessageType.KVP, _FRAMEWORKS, _versions("3.0", "4.0", "5.0")),
    "vss": Dialect(MessageType.VSS, _FRAMEWORKS, _versions("4.0", "5.0", "6.0", "7.0")),
    "fcopy": Dialect(MessageType.FCOPY, _FRAMEWORKS, _versions("1.1")),
}
