# SPDX-License-Identifier: Apache-2.0
"""The VMBus ring buffer: one producer, one consumer, in memory that two sides share (PROTOCOL §2).

``RingProducer`` and ``RingConsumer`` work over any writable buffer.  From Cython, ``cimport hvring.ring.core`` gives
the same without the GIL: ``get_include()`` is what the C compiler needs.
"""

from hvring.ring._ring import (
    LIES,
    Claim,
    DoubleMapping,
    Packet,
    PacketView,
    RingConsumer,
    RingProducer,
    ViewIterator,
)

__all__ = [
    "LIES",
    "Claim",
    "DoubleMapping",
    "Packet",
    "PacketView",
    "RingConsumer",
    "RingProducer",
    "ViewIterator",
    "get_include",
]


def get_include() -> str:
    """The folder of the headers that an extension needs which does ``cimport hvring.ring.core``."""
    return str(__path__[0])
