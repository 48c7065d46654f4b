# SPDX-License-Identifier: Apache-2.0
"""A FUSE file system of one file, whose server hangs when it is told to: `fuse_process.py TARGET SIZE`.

Words on its standard input: "hang" (answer nothing from now on) and "go on"; each is answered with a line.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import struct
import sys

HEADER = struct.Struct("=IIQQIIIHH")
LOOKUP, FORGET, GETATTR, OPEN, READ, WRITE, STATFS, RELEASE, FSYNC, FLUSH, INIT = (
    1,
    2,
    3,
    14,
    15,
    16,
    17,
    18,
    20,
    25,
    26,
)
SETATTR, INTERRUPT, BATCH_FORGET = 4, 36, 42
DIRECTORY, FILE = 1, 2
LARGEST = 1 << 20
ATTRIBUTES = struct.Struct("=QQQQQQIIIIIIIIII")


class Server:
    def __init__(self, fuse: int, size: int) -> None:
        self.fuse = fuse
        self.data = bytearray(size)

    def answer(self) -> None:
        raw = os.read(self.fuse, LARGEST + 4096)
        _, operation, unique, node, *_ = HEADER.unpack_from(raw)
        body = raw[HEADER.size :]
        if operation in (FORGET, BATCH_FORGET, INTERRUPT):
            return
        try:
            said, error = self.say(operation, node, body), 0
        except OSError as problem:
            said, error = b"", -(problem.errno or errno.EIO)
        os.write(self.fuse, struct.pack("=IiQ", 16 + len(said), error, unique) + said)

    def say(self, operation: int, node: int, body: bytes) -> bytes:
        if operation == INIT:
            whole = struct.pack("=IIIIHHIIHHI7I", 7, 26, 0, 0, 16, 12, 1 << 16, 1, 0, 0, 0, *[0] * 7)
            return whole[:64]
        if operation == LOOKUP:
            if body.rstrip(b"\0") != b"file":
                raise OSError(errno.ENOENT, "")
            return struct.pack("=QQQQII", FILE, 0, 3600, 3600, 0, 0) + self.attributes(FILE)
        if operation in (GETATTR, SETATTR):
            return struct.pack("=QII", 3600, 0, 0) + self.attributes(node)
        if operation == OPEN:
            return struct.pack("=QII", 0, 0, 0)
        if operation == READ:
            _, offset, size = struct.unpack_from("=QQI", body)
            return bytes(self.data[offset : offset + size])
        if operation == WRITE:
            _, offset, size = struct.unpack_from("=QQI", body)
            self.data[offset : offset + size] = body[40 : 40 + size]
            return struct.pack("=II", size, 0)
        if operation in (RELEASE, FSYNC, FLUSH):
            return b""
        if operation == STATFS:
            return struct.pack("=5Q10I", 99, 99, 99, 9, 9, 4096, 255, 4096, *[0] * 7)
        raise OSError(errno.ENOSYS, "")

    def attributes(self, node: int) -> bytes:
        is_file = node == FILE
        mode = 0o100600 if is_file else 0o40700
        size = len(self.data) if is_file else 0
        return ATTRIBUTES.pack(node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def main(target: str, size: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    fuse = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0"
    if libc.mount(b"hvring-test", target.encode(), b"fuse", 0, options.encode()):
        sys.exit(os.strerror(ctypes.get_errno()))
    server = Server(fuse, int(size))
    server.answer()
    print("mounted", flush=True)
    is_hanging = False
    while True:
        ready, _, _ = select.select([0] if is_hanging else [0, fuse], [], [])
        if 0 in ready:
            word = os.read(0, 100).decode().strip()
            if not word:
                return
            is_hanging = word == "hang"
            print(word, flush=True)
        elif fuse in ready:
            server.answer()


if __name__ == "__main__":
    main(*sys.argv[1:])
