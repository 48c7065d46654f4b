# SPDX-License-Identifier: Apache-2.0
"""The rules that a guest's reply must keep (PROTOCOL §3.1, §5.1, §5.2)."""

from __future__ import annotations

from typing import Final, NamedTuple

from hvring.errors import MessageError
from hvring.host.link import Packet
from hvring.ic.frame import DATA, RESPONSE_FLAGS, Frame
from hvring.status import Status

_STATUSES: Final = frozenset(int(s) for s in Status)


class Verdict(NamedTuple):
    """``frame`` is None when the reply cannot be used; ``complaints`` name every broken rule."""

    frame: Frame | None
    complaints: tuple[str, ...]


def judge(packet: Packet, asked: Frame, transaction_id: int) -> Verdict:
    """Hold the reply in ``packet`` against the request ``asked``, sent with this ring transaction id.

    What a Microsoft host fails a service for makes the reply unusable: sizes that are not true, pipe type,
    transaction id, missing flags, message type. The other rules are complained about and no more.
    """
    light = []
    if packet.flags:
        light.append(f"descriptor flags {packet.flags:#x}, an answer has 0")
    if packet.transaction_id != transaction_id:
        light.append(
            f"descriptor transaction id {packet.transaction_id:#x}, the request had {transaction_id:#x}"
        )
    try:
        frame = Frame.decode(packet.payload)
    except MessageError as error:
        return Verdict(None, (str(error), *light))
    grave = []
    if frame.pipe_type != DATA:
        grave.append(f"pipe packet type {frame.pipe_type}, data is {DATA}")
    if frame.type != asked.type:
        grave.append(f"message type {frame.type}, the request had {asked.type}")
    if frame.transaction_id != asked.transaction_id:
        grave.append(f"IC transaction id {frame.transaction_id}, the request had {asked.transaction_id}")
    if frame.flags & RESPONSE_FLAGS != RESPONSE_FLAGS:
        grave.append(
            f"flags {frame.flags:#x} lack TRANSACTION or RESPONSE, an answer has {RESPONSE_FLAGS:#x}"
        )
    elif frame.flags != RESPONSE_FLAGS:
        light.append(f"flags {frame.flags:#x}, an answer has {RESPONSE_FLAGS:#x}")
    if frame.framework != asked.framework:
        light.append(f"framework version {frame.framework}, the request had {asked.framework}")
    if frame.version != asked.version:
        light.append(f"message version {frame.version}, the request had {asked.version}")
    if frame.status not in _STATUSES:
        light.append(f"status {frame.status:#010x} is not known")
    return Verdict(None if grave else frame, (*grave, *light))
