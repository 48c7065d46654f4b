# SPDX-License-Identifier: Apache-2.0
"""The limit of any agent: host.c's echo, which sleeps on its doorbell, sends requests back and writes a file's chunks.

`echo_c.py SOCKET SERVICE [SECONDS]`, until the host is gone; the file is `echoed` in the directory that it is started
in.  It looks for so many seconds before it sleeps.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import socket
import sys

from blocking_host import Way, library

from hvring.transport.endpoint import OfferReply, OpenRequest, receive_offer


def main(path: str, name: str, spin: str = "0") -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as host:
        host.connect(path)
        host.send(OpenRequest(name).encode())
        host.recv(1, socket.MSG_PEEK)
        data, (memory, to_host, to_guest) = receive_offer(host)
        size = OfferReply.decode(data).ring_size
        rings = mmap.mmap(memory, 2 * size)
        at = ctypes.addressof(ctypes.c_char.from_buffer(rings))
        way = Way(at + size, at, size - 4096, to_guest, to_host, host.fileno())
        way.spin = int(float(spin) * 1e9)
        file = os.open("echoed", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        error = library().host_echo(ctypes.byref(way), file)
    sys.exit(os.strerror(-error) if error else 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
