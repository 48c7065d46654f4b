# SPDX-License-Identifier: Apache-2.0
"""The oracle's recorded requests, played into the host's end of the model, with hvring behind the other end."""

from __future__ import annotations

import importlib.util
import select
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from hv_utils_model import DEBIAN_12, Device, HvUtils

from hvring.agent.message_responder import MessageResponder
from hvring.transport.utils import UtilsChannel

ORACLE = Path(__file__).parents[1] / "oracle"
RECORDINGS = {"kvp": "kvp", "vss": "vss", "fcopy-hv_utils-6.1": "fcopy"}


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"oracle_{name}", ORACLE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look for it
    spec.loader.exec_module(module)
    return module


oracle = _load("test_oracle")


def answered(responder: MessageResponder) -> None:
    """Until nothing is left to do; what takes its time is waited for."""
    while responder.respond() or responder.is_blocked:
        poll = select.poll()
        for descriptor in responder.descriptors():
            poll.register(descriptor, select.POLLIN)
        if responder.is_blocked:
            left = responder.timeout()
            poll.poll(None if left is None else left * 1000)
        responder.service.tick()


def replay(recording: str, directory: Path) -> Iterator[tuple[Any, bytes | None]]:
    """Every row of a recording, and what the host got for it; the services are those of the oracle's own test."""
    name = RECORDINGS[recording]
    guest = oracle.GUESTS[recording](directory)
    kernel = HvUtils(DEBIAN_12)
    device = kernel[name]
    responder = None
    try:
        for row in oracle.rows(recording):
            guest.before(row)
            if responder is None and not row.what.endswith("no daemon"):
                responder = MessageResponder(UtilsChannel(device.open(), name), guest.service)
            yield row, _one(device, row.request, responder)
    finally:
        if responder is not None:
            responder.end()
            responder.channel.close()
        kernel.close()
    assert (device.bugs, device.blocked_reads) == (0, 0)


def _one(device: Device, request: bytes, responder: MessageResponder | None) -> bytes | None:
    before = len(device.answers)
    device.host_sends(request)
    if responder is not None:
        answered(responder)
    new = device.answers[before:]
    assert len(new) <= 1, "one request, one answer"
    return new[0] if new else None
