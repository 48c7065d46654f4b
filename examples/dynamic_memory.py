# SPDX-License-Identifier: Apache-2.0
"""A VMBus driver in about a hundred lines: tell the host how much memory this guest has free and has promised.

It opens Hyper-V's dynamic-memory device, agrees with the host on a version of its protocol, and reports until
it is stopped. It neither balloons nor takes more memory, and says so; the kernel's hv_balloon does both.

    modprobe uio_hv_generic; rmmod hv_balloon
    hvring bind 525074dc-8985-46e2-8057-a307dc18a502
    python3 dynamic_memory.py

Anywhere else: `--virtual PATH`, where a virtual host offers the class (tests/host/test_host_devices.py has one).
"""

from __future__ import annotations

import argparse
import struct
import sys
import time

from hvring import Channel
from hvring.errors import ChannelRescindedError, HvringError
from hvring.transport.uio import open_channel
from hvring.transport.virtual import connect

CLASS = "525074dc-8985-46e2-8057-a307dc18a502"
VERSIONS = ((2, 0), (1, 0), (0, 3))  # of Windows 10, 8 and 7; newest first
VERSION_REQUEST, VERSION_RESPONSE, CAPABILITIES, CAPABILITIES_RESPONSE, STATUS_REPORT = range(1, 6)
HEADER = struct.Struct("<HHI")  # type, size with the header, transaction id
PAGE = 4096
ANSWER_SECONDS = 30.0


def message(kind: int, number: int, body: bytes) -> bytes:
    """One message of the protocol; ``number`` is its transaction id."""
    return HEADER.pack(kind, HEADER.size + len(body), number) + body


def version_request(number: int, version: tuple[int, int], *, last: bool = False) -> bytes:
    major, minor = version
    return message(VERSION_REQUEST, number, struct.pack("<HHI", minor, major, last))


def accepted(channel: Channel, request: bytes) -> bool:
    """Send a request and wait for the host's yes or no."""
    kind, _, number = HEADER.unpack_from(request)
    channel.send(request, timeout=ANSWER_SECONDS)
    while channel.wait(ANSWER_SECONDS):
        for packet in channel:
            if HEADER.unpack_from(packet.payload)[::2] == (kind + 1, number):
                return bool(packet.payload[HEADER.size] & 1)
    raise TimeoutError("the host does not answer")


def negotiate(channel: Channel, versions: tuple[tuple[int, int], ...] = VERSIONS) -> tuple[int, int]:
    """The version that both sides speak; then say that this driver does nothing but report."""
    for number, version in enumerate(versions, 1):
        if accepted(channel, version_request(number, version, last=version == versions[-1])):
            break
    else:
        raise ValueError("the host knows none of these versions")
    capabilities, least, most = 0, 0, 2**64 - 1  # the last two: page numbers
    body = struct.pack("<QQQ", capabilities, least, most)
    if not accepted(channel, message(CAPABILITIES, len(versions) + 1, body)):
        raise ValueError("the host does not accept a driver that only reports")
    return version


def pressure() -> tuple[int, int]:
    """Pages that are available, and pages that were promised to programs."""
    with open("/proc/meminfo", encoding="ascii") as lines:
        kilobytes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    return kilobytes["MemAvailable"] * 1024 // PAGE, kilobytes["Committed_AS"] * 1024 // PAGE


def report(channel: Channel, number: int) -> tuple[int, int]:
    """Send one report; what it says."""
    available, committed = pressure()
    body = struct.pack("<QQQQII", available, committed, 0, 0, 0, 0)  # page file, zeroed pages, writes, I/O
    channel.send(message(STATUS_REPORT, number, body), timeout=ANSWER_SECONDS)
    return available, committed


def serve(channel: Channel, interval: float) -> None:
    """Report until the host takes the channel back."""
    print("version {}.{}".format(*negotiate(channel)), flush=True)
    number, due = 100, time.monotonic()
    while True:
        print("reported {} available, {} committed pages".format(*report(channel, number)), flush=True)
        number, due = (number + 1) % 2**32, due + interval
        while (left := due - time.monotonic()) > 0 and channel.wait(left):
            for packet in channel:
                print(f"the host says {HEADER.unpack_from(packet.payload)[0]}", flush=True)


def main() -> str:
    """What ended it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between reports")
    parser.add_argument("--virtual", metavar="PATH", help="attach to a virtual host instead of Hyper-V")
    args = parser.parse_args()
    try:
        with connect(args.virtual, CLASS) if args.virtual else open_channel(CLASS) as channel:
            serve(channel, args.interval)
    except ChannelRescindedError:
        return "dynamic_memory: the host took the channel back"
    except (HvringError, OSError, ValueError, struct.error) as error:
        return f"dynamic_memory: {error}"
    except KeyboardInterrupt:
        return "dynamic_memory: stopped"


if __name__ == "__main__":
    sys.exit(main())
