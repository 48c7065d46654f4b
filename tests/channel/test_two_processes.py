# SPDX-License-Identifier: Apache-2.0
"""Two real processes on one ring: order, masks, blocking on both sides, wraps, and death at any moment."""

from __future__ import annotations

import os
import random
import signal

import pytest

from hvring import ChannelRescindedError

PACKETS = int(os.environ.get("HVRING_STRESS_PACKETS", "10000000"))


@pytest.mark.stress
@pytest.mark.parametrize(
    ("sender", "receiver", "ring_size", "count", "largest"),
    [
        ("send", "recv", 4096 + 256, 30_000, 120),  # full and empty all the time: both sides block
        ("send", "recv", 8192, 150_000, 1000),
        ("send", "recv", 2 << 20, 200_000, 200),
        ("send", "recv-batches", 4096 + 65536, 300_000, 64),
        ("send-batches", "recv", 4096 + 65536, 300_000, 64),
        ("send-batches", "recv-batches", 4096 + 131072, PACKETS, 64),
    ],
)
def test_everything_arrives_once_in_order_and_whole(
    sender: str, receiver: str, ring_size: int, count: int, largest: int, link, counters
) -> None:
    ends = link(ring_size)
    reader = ends.start(receiver, "host", count, 42, largest)
    writer = ends.start(sender, "guest", count, 42, largest)
    got, sent = counters(reader), counters(writer)
    assert got["packets_received"] == sent["packets_sent"] == count
    assert got["bytes_received"] == sent["bytes_sent"]
    # at most one signal for each time that the reader asked for one (and one for the open ring)
    assert sent["signals_sent"] <= got["armed"] + 1
    assert got["signals_received"] <= sent["signals_sent"]


@pytest.mark.stress
def test_an_echo_over_two_full_rings(link, peer, counters) -> None:
    ends = link(8192)
    life = os.dup(ends.host_life.fileno())
    guest = ends.start("echo", "guest", 50_000)
    ends.host_life.close()
    with peer.attach("host", 8192, *ends.shared, life) as host:
        os.close(life)
        rng = random.Random(1)
        payloads = [rng.randbytes(rng.randrange(150) * 8) for _ in range(100)]
        sent = received = 0
        while received < 50_000:
            if sent < 50_000:
                batch = payloads[sent % 100 :][: 50_000 - sent]
                sent += host.send_many(batch, transaction_id=sent)
                if sent < 50_000:
                    host.want_room(len(payloads[sent % 100]))
            host.wait()
            for packet in host:
                assert packet.transaction_id == received
                assert packet.payload == payloads[received % 100]
                received += 1
        assert counters(guest)["packets_received"] == 50_000


@pytest.mark.parametrize("role", ["send", "recv", "echo"])
@pytest.mark.parametrize("attempt", range(5))
def test_a_peer_killed_at_any_moment_rescinds_the_channel(role: str, attempt: int, link, peer) -> None:
    rng = random.Random(attempt)
    ends = link(8192)
    life = os.dup(ends.host_life.fileno())
    guest = ends.start(role, "guest", 10**9, *([42, 64] if role != "echo" else []))
    ends.host_life.close()
    payloads = peer.pattern(42, 64)
    with peer.attach("host", 8192, *ends.shared, life) as host:
        os.close(life)
        busy = rng.randrange(1, 3000)
        done = 0
        with pytest.raises(ChannelRescindedError):
            while True:
                if role != "send":
                    host.send(payloads[done % 64], transaction_id=done, timeout=None)
                if role != "recv":
                    assert host.wait(60), "neither a packet nor an end"
                    for packet in host:
                        assert packet.payload == payloads[packet.transaction_id % 64]
                        done += 1
                else:
                    done += 1
                if done >= busy and guest.poll() is None:
                    guest.send_signal(signal.SIGKILL)
        assert guest.wait(10) == -signal.SIGKILL
