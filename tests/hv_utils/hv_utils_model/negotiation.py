# SPDX-License-Identifier: Apache-2.0
"""How the drivers answer a negotiation: in place, with leftovers, and always with the status that came."""

from __future__ import annotations

import struct
from collections.abc import Sequence

MOST = 100
BODY = 28


def negotiate(
    buffer: bytearray, length: int, ours: Sequence[tuple[int, int]], versions: Sequence[tuple[int, int]]
) -> None:
    """``ours`` (frameworks) and ``versions`` newest first."""
    if length < BODY + 4:
        return
    struct.pack_into("<H", buffer, 18, 16)
    frameworks, messages = struct.unpack_from("<HH", buffer, BODY)
    chosen = [(frameworks, 0), (messages, 0)]
    agreed = False
    if max(frameworks, messages) <= MOST and BODY + 8 + 4 * (frameworks + messages) <= length:
        offered = list(struct.iter_unpack("<HH", buffer[BODY + 8 : BODY + 8 + 4 * (frameworks + messages)]))
        framework = next((v for v in ours if v in offered[:frameworks]), None)
        if framework is not None:
            chosen[0] = framework
            version = next((v for v in versions if v in offered[frameworks:]), None)
            if version is not None:
                chosen[1] = version
                agreed = True
    struct.pack_into("<HH", buffer, BODY, agreed, agreed)
    struct.pack_into("<4H", buffer, BODY + 8, *chosen[0], *chosen[1])
