# SPDX-License-Identifier: Apache-2.0
"""The VMBus ring buffer: one producer, one consumer, in memory that two sides share (PROTOCOL §2).

``RingProducer`` and ``RingConsumer`` work over any writable buffer.  From Cython, ``cimport hvring.ring.core`` gives
the same without the GIL.
"""

from hvring.ring._ring import (
    LIES,
    Claim,
    Packet,
    PacketView,
    RingConsumer,
    RingProducer,
)

__all__ = ["LIES", "Claim", "Packet", "PacketView", "RingConsumer", "RingProducer"]
