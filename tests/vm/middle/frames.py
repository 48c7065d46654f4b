# SPDX-License-Identifier: Apache-2.0
"""The frames of an hv-ic device's socket, as described at the top of lab/hv-ic.c."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

IN_BAND: Final = 6
_HEAD: Final = struct.Struct("<IBBHHHQ")


class Frame(NamedTuple):
    """``kind`` is one letter; the rest matters for packets ("P") only, but that ``number`` may be a count."""

    kind: str
    payload: bytes = b""
    number: int = 0  # a packet's transaction id
    completion: bool = False  # one is wanted
    packet_type: int = IN_BAND
    channel: int = 0  # 0: the primary

    def encode(self) -> bytes:
        length = _HEAD.size - 4 + len(self.payload)
        head = (length, ord(self.kind), int(self.completion), self.packet_type, 0, self.channel, self.number)
        return _HEAD.pack(*head) + self.payload


def take(data: bytearray) -> Iterator[Frame]:
    """The whole frames at the beginning of ``data``, which are removed from it."""
    while len(data) >= _HEAD.size:
        length, kind, flags, packet_type, _, channel, number = _HEAD.unpack_from(data)
        if len(data) < length + 4:
            return
        payload = bytes(data[_HEAD.size : length + 4])
        del data[: length + 4]
        yield Frame(chr(kind), payload, number, bool(flags & 1), packet_type, channel)
