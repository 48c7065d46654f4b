# SPDX-License-Identifier: Apache-2.0
"""A VMBus ring in plain Python, as fast as it gets without an extension: slices of memoryviews and struct."""

from __future__ import annotations

import struct

_HEADER = struct.Struct("<HHHHQ")
_TRAILER = struct.Struct("<II")


class PlainRing:
    """Both ends over one writable buffer with a control page in front."""

    def __init__(self, memory: bytearray) -> None:
        view = memoryview(memory)
        self.index = view[:16].cast("I")  # write, read, mask, pending
        self.data = view[4096:]
        self.size = len(self.data)

    def send(self, payload: bytes) -> bool | None:
        """None: full.  Else whether the reader must be signalled."""
        index, data, size = self.index, self.data, self.size
        length = len(payload)
        whole = (length + 23) & ~7
        old = index[0]
        if (index[1] - old - 1) % size < whole + 8:
            return None
        if old + whole + 8 <= size:
            _HEADER.pack_into(data, old, 6, 2, whole >> 3, 0, 0)
            data[old + 16 : old + 16 + length] = payload
            _TRAILER.pack_into(data, old + whole, 0, old)
        else:
            packet = _HEADER.pack(6, 2, whole >> 3, 0, 0) + payload + bytes(whole - 16 - length)
            packet += _TRAILER.pack(0, old)
            first = size - old
            data[old:] = packet[:first]
            data[: len(packet) - first] = packet[first:]
        index[0] = (old + whole + 8) % size
        return index[2] == 0 and index[1] == old

    def recv_into(self, target: bytearray) -> int | None:
        """The payload's bytes with its padding, now in `target`; None: nothing there."""
        index, data, size = self.index, self.data, self.size
        at = index[1]
        used = (index[0] - at) % size
        if used == 0:
            return None
        header = data[at : at + 16] if at + 16 <= size else bytes(data[at:]) + bytes(data[: at + 16 - size])
        _, offset, length, _, _ = _HEADER.unpack(header)
        if not 2 <= offset <= length or length * 8 + 8 > used:
            raise ValueError("the writer lied")
        start, count = (at + offset * 8) % size, (length - offset) * 8
        if start + count <= size:
            target[:count] = data[start : start + count]
        else:
            first = size - start
            target[:first] = data[start:]
            target[first:count] = data[: count - first]
        index[1] = (at + length * 8 + 8) % size
        return count
