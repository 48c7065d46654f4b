# SPDX-License-Identifier: Apache-2.0
"""In the guest: version requests that QEMU's hv-balloon refuses for ever, one after the other, as an echo.

Arguments: how many, and after how many seconds to stop in any case. Prints one line of JSON.
"""

from __future__ import annotations

import json
import random
import sys
import time

sys.path.insert(0, "/examples")
from dynamic_memory import CLASS, HEADER, VERSION_RESPONSE, version_request

from hvring import Channel
from hvring.transport.uio import open_channel

_BATCHES = (1, 1, 2, 7, 60, 400)
_PADDING = (0, 0, 0, 1, 300, 3000)  # what stands behind a message does not matter to QEMU


def echo(channel: Channel, total: int, seconds: float) -> dict[str, object]:
    """Batches of all sizes, blocking for the answers of each; ends at the first that is lost or out of order."""
    choose = random.Random(7)
    began = time.monotonic()
    sent = received = 0
    wrong = ""
    while sent < total and not wrong and time.monotonic() - began < seconds:
        behind = bytes(choose.choice(_PADDING))
        end = min(total, sent + choose.choice(_BATCHES))
        sent += channel.send_many(version_request(n, (3, 0)) + behind for n in range(sent, end))
        while received < sent and not wrong:
            if choose.random() < 0.5:  # what comes while masked brings no interrupt: wait() has to look
                channel.mask()
            for packet in channel:
                kind, _, number = HEADER.unpack_from(packet.payload)
                if (kind, number) != (VERSION_RESPONSE, received) or packet.payload[8] & 1:
                    wrong = f"type {kind} number {number} accepted {packet.payload[8]}, expected {received}"
                received += 1
            if received < sent and not channel.wait(10):
                wrong = f"no answer to {received} in 10 s"
    took = time.monotonic() - began
    return {"sent": sent, "received": received, "wrong": wrong, "seconds": took, **channel.stats()}


with open_channel(CLASS) as opened:
    print(json.dumps(echo(opened, int(sys.argv[1]), float(sys.argv[2]))))
