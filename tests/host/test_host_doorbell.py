# SPDX-License-Identifier: Apache-2.0
"""The host's loop waits at no counter that a guest fills."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hvring.host.ring_link import RingLink
from hvring.transport.virtual import Offer
from hvring.vmbus import BY_NAME

ROUNDS = 200_000
LIMIT = 120  # seconds after which the host counts as hanging

FILLER = Path(__file__).parents[1] / "hostile" / "filler.py"

HOST = """if 1:
    import asyncio, os, sys
    sys.path[:0] = sys.argv[4].split(os.pathsep)
    import test_host_doorbell as test
    asyncio.run(test.signal(*map(int, sys.argv[1:4])))
"""


def no_packet(packet: object) -> None:
    raise AssertionError("nobody sends")


async def signal(to_host: int, to_guest: int, progress: int) -> None:
    """Signal a guest at that eventfd many times, and take what it rang at the other one."""
    offer = Offer(BY_NAME["kvp"], 8192)
    os.dup2(to_guest, offer.host_event)
    os.dup2(to_host, offer.guest_event)
    link = RingLink(offer, received=no_packet, needless=lambda count: None, broken=no_packet)
    seen = memoryview(mmap.mmap(progress, 4096)).cast("Q")
    for n in range(ROUNDS):
        link.signal()
        link.look()
        seen[0] = n
    link.close()
    print("done")


@pytest.mark.parametrize("filled", [0, 1], ids=["the guest's", "the host's"])
def test_a_guest_that_fills_a_counter_at_any_moment_holds_no_host(filled: int) -> None:
    shared = [os.eventfd(0), os.eventfd(0), os.memfd_create("progress")]
    os.ftruncate(shared[2], 4096)
    path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    filler = subprocess.Popen(
        [sys.executable, str(FILLER), str(shared[filled]), str(shared[2])], pass_fds=shared
    )
    host = subprocess.Popen(
        [sys.executable, "-c", HOST, *map(str, shared), path],
        pass_fds=shared,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert host.communicate(timeout=LIMIT)[0] == "done\n"
    finally:
        for process in (host, filler):
            process.kill()
            process.communicate()
        for descriptor in shared:
            os.close(descriptor)
