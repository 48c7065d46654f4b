# SPDX-License-Identifier: Apache-2.0
"""One side of a channel in a process of its own: `peer.py ROLE SIDE RING_SIZE DESCRIPTORS NUMBERS`.

The descriptors are inherited: memory, to_host, to_guest, lifeline.  Prints its counters when its work is done.
"""

from __future__ import annotations

import mmap
import os
import random
import sys
import time

from hvring import Channel, RingFullError
from hvring.channel import EventfdDoorbell


def attach(side: str, ring_size: int, memory: int, to_host: int, to_guest: int, lifeline: int) -> Channel:
    rings = (0, ring_size) if side == "guest" else (ring_size, 0)
    bells = (to_host, to_guest) if side == "guest" else (to_guest, to_host)
    return Channel(
        mmap.mmap(memory, 2 * ring_size),
        ring_size=ring_size,
        tx_offset=rings[0],
        rx_offset=rings[1],
        doorbell=EventfdDoorbell(os.dup(bells[0]), os.dup(bells[1])),
        lifeline=os.dup(lifeline),
        name=side,
    )


def pattern(seed: int, largest: int) -> list[bytes]:
    """Payloads of many sizes, multiples of 8, so that both sides know every byte of the stream."""
    rng = random.Random(seed)
    return [rng.randbytes(rng.randrange(largest // 8 + 1) * 8) for _ in range(64)]


def send_each(channel: Channel, count: int, seed: int, largest: int) -> None:
    """One call per packet; blocks in pending_send_sz whenever the ring is full."""
    payloads = pattern(seed, largest)
    for n in range(count):
        channel.send(payloads[n % 64], transaction_id=n, timeout=None)


def send_batches(channel: Channel, count: int, seed: int, largest: int) -> None:
    payloads = pattern(seed, largest) * 2
    n = 0
    while n < count:
        start = n % 64
        sent = channel.send_many(payloads[start : start + min(64, count - n)], transaction_id=n)
        if sent == 0:
            channel.send(payloads[start], transaction_id=n, timeout=None)
            sent = 1
        n += sent


def recv_each(channel: Channel, count: int, seed: int, largest: int) -> None:
    payloads = pattern(seed, largest)
    n = 0
    while n < count:
        channel.wait()
        for packet in channel:
            if packet.transaction_id != n or packet.payload != payloads[n % 64]:
                sys.exit(f"packet {n} came as {packet!r}")
            n += 1


def recv_batches(channel: Channel, count: int, seed: int, largest: int) -> None:
    import numpy as np

    from hvring.vmbus.arrays import descriptor_dtype

    payloads = pattern(seed, largest)
    stream = b"".join(payloads) * 80
    starts = np.concatenate([[0], np.cumsum([len(p) for p in payloads])])
    data = np.zeros(1 << 20, np.uint8)
    rows = np.zeros(4096, descriptor_dtype())
    n = 0
    while n < count:
        channel.wait()
        while got := channel.recv_batch(data, rows):
            ids = rows["transaction_id"][:got]
            if (
                int(ids[0]) != n
                or int(ids[-1]) != n + got - 1
                or not (np.diff(ids.astype(np.int64)) == 1).all()
            ):
                sys.exit(f"lost or doubled near packet {n}")
            used = int(rows["offset"][got - 1] + rows["length"][got - 1])
            start = int(starts[n % 64])
            if memoryview(data)[:used] != memoryview(stream)[start : start + used]:
                sys.exit(f"bytes changed near packet {n}")
            n += got


def echo(channel: Channel, count: int) -> None:
    """Answer every packet; never blocks in send while there is something to read."""
    waiting: list[tuple[int, bytes]] = []
    done = 0
    while done < count:
        while waiting:
            try:
                channel.send(waiting[0][1], transaction_id=waiting[0][0])
            except RingFullError:
                channel.want_room(len(waiting[0][1]))
                break
            waiting.pop(0)
            done += 1
        if done < count:
            channel.wait()
            waiting += [(packet.transaction_id, packet.payload) for packet in channel]


def pause(rng: random.Random) -> None:
    """Mostly none; else a short one without sleep, or a long one."""
    dice = rng.random()
    if dice < 0.001:
        time.sleep(rng.random() * 0.002)
    elif dice < 0.05:
        until = time.monotonic() + rng.random() * 0.0001
        while time.monotonic() < until:
            pass


def echo_spinning(channel: Channel, count: int, spin: int, share: int) -> None:
    """Answer one packet at a time; looks for `spin` us, for at most `share` % of the time, before it sleeps."""
    rng = random.Random(spin)
    # Until the first wait nothing is masked, and each packet that was found without one would be signalled.
    channel.mask()
    channel.spin_share, channel.spin = share / 100, spin * 1e-6
    for _ in range(count):
        while (packet := channel.recv()) is None:
            if not channel.wait(60):
                sys.exit("a wake-up was lost")
        pause(rng)
        channel.send(packet.payload, transaction_id=packet.transaction_id)


def main() -> None:
    role, side, ring_size, *rest = sys.argv[1:]
    descriptors, numbers = [int(x) for x in rest[:4]], [int(x) for x in rest[4:]]
    channel = attach(side, int(ring_size), *descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    work = {"send": send_each, "send-batches": send_batches, "recv": recv_each, "recv-batches": recv_batches}
    if role == "echo":
        echo(channel, *numbers)
    elif role == "echo-spin":
        echo_spinning(channel, *numbers)
    else:
        work[role](channel, *numbers)
    print(" ".join(f"{key}={value}" for key, value in channel.stats().items()), flush=True)
    sys.stdin.read()  # stay until the other side has everything: our end is its rescind


if __name__ == "__main__":
    main()
