# SPDX-License-Identifier: Apache-2.0
"""The host of host.c: it drives `hvring run` over rings and the in-tree daemons over their devices, on one processor.

Its calls block and keep no GIL: several conversations go on beside each other in threads.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from functools import cache
from statistics import quantiles

from agents import FRAMEWORK, VERSIONS, RunningAgent
from daemons import MESSAGES, Daemon, UtilsAgent
from peers import FLAGS, HERE, kept, run

from hvring.ic.fcopy import CHUNK, WriteChunk
from hvring.ic.frame import Frame, MessageType
from hvring.ic.negotiate import NegotiateRequest
from hvring.transport.virtual import Offer

STATUS = 20  # where an answer over a ring has it; a device's answers begin with it
BODY = 28
LARGEST = 16384


class Stuck(Exception):
    """The peer did not answer, not with OK, or broke the rules of rings."""


class Way(ctypes.Structure):
    """host.c's struct way; use :func:`over_rings` and :func:`to_device`."""

    _fields_ = (
        ("in_", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("size", ctypes.c_uint32),
        ("wake", ctypes.c_int32),
        ("bell", ctypes.c_int32),
        ("lifeline", ctypes.c_int32),
        ("status_at", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("spin", ctypes.c_uint64),
        ("sleeps", ctypes.c_uint64),
        ("for_nothing", ctypes.c_uint64),
        ("rung", ctypes.c_uint64),
    )
    anchor: object  # keeps the memory mapped

    def ask(self, message: bytes) -> bytes:
        """One request and its answer.  Raises Stuck."""
        answer = ctypes.create_string_buffer(LARGEST)
        size = library().host_ask(ctypes.byref(self), message, len(message), answer, LARGEST)
        _check(size)
        return answer.raw[:size]

    def converse(
        self, messages: Sequence[bytes], count: int, *, gap: float = 0, over: ctypes.c_int32 | None = None
    ) -> Sequence[int]:
        """Nanoseconds to each answer: the messages in turn, `count` in all or until `over` is not zero."""
        took = (ctypes.c_uint64 * count)()
        kinds = len(messages)
        done = library().host_converse(
            ctypes.byref(self),
            (ctypes.c_char_p * kinds)(*messages),
            (ctypes.c_uint32 * kinds)(*map(len, messages)),
            kinds,
            count,
            int(gap * 1e9),
            None if over is None else ctypes.byref(over),
            took,
        )
        _check(done)
        return memoryview(took).cast("B").cast("Q")[:done]

    def copy(self, source: bytes, chunks: int, over: ctypes.c_int32 | None = None) -> Sequence[int]:
        """The same for the WRITEs of a file: `source`, a multiple of CHUNK, again and again."""
        took = (ctypes.c_uint64 * chunks)()
        body = WriteChunk(0, bytes(CHUNK)).encode()
        is_device = self.in_ is None
        message = body if is_device else Frame(MessageType.FCOPY, body).encode()
        done = library().host_copy(
            ctypes.byref(self),
            ctypes.create_string_buffer(message, len(message)),
            len(message),
            0 if is_device else BODY,
            source,
            len(source),
            chunks,
            None if over is None else ctypes.byref(over),
            took,
        )
        _check(done)
        return memoryview(took).cast("B").cast("Q")[:done]


@cache
def library() -> ctypes.CDLL:
    path = kept("host", "host.c")
    if not path.exists():
        run(["cc", *FLAGS, "-o", str(path), str(HERE / "host.c")], HERE)
    found = ctypes.CDLL(str(path))
    found.host_converse.restype = found.host_copy.restype = ctypes.c_int64
    pointer, number, long = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64
    found.host_converse.argtypes = (pointer, pointer, pointer, number, long, long, pointer, pointer)
    found.host_copy.argtypes = (pointer, pointer, number, number, pointer, long, long, pointer, pointer)
    return found


def over_rings(agent: RunningAgent, name: str, spin: float = 0) -> Way:
    """Takes the host's end of that channel over; `agent.ask` is of no use for it after that.

    `spin`: seconds to look for the answer before going to sleep.
    """
    offer, connection = agent.offers[name]
    return over_offer(offer, connection.fileno(), name, spin)


def over_offer(offer: Offer, lifeline: int, name: str, spin: float = 0) -> Way:
    """The host's end of those rings; negotiates (again).  `lifeline`: readable once the guest is gone."""
    anchor = ctypes.c_char.from_buffer(offer.memory)
    memory, size = ctypes.addressof(anchor), offer.ring_size
    way = Way(memory, memory + size, size - 4096, offer.guest_event, offer.host_event, lifeline, STATUS)
    way.spin, way.anchor = int(spin * 1e9), anchor
    wanted = NegotiateRequest((FRAMEWORK,), (VERSIONS[name],)).encode()
    answer = Frame.decode(way.ask(Frame(MessageType.NEGOTIATE, wanted).encode()))
    if answer.status or answer.body[:4] != b"\1\0\1\0":
        raise Stuck(f"{name}: no version in common")
    return way


def to_device(daemon: Daemon | UtilsAgent, spin: float = 0) -> Way:
    """The daemon's device; `daemon.ask` goes on working."""
    socket = daemon.device.fileno()
    return Way(None, None, MESSAGES[daemon.name], socket, socket, -1, 0, 0, int(spin * 1e9))


def _check(result: int) -> None:
    if result < 0:
        raise Stuck(os.strerror(-result))


def percentile(took: Sequence[int], hundredths: int) -> float:
    """Of nanoseconds, in milliseconds."""
    if len(took) < 2:
        return took[0] / 1e6
    return quantiles(took, n=100, method="inclusive")[hundredths - 1] / 1e6
