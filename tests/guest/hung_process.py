# SPDX-License-Identifier: Apache-2.0
"""A FUSE file system whose daemon answers nothing but its mount: `hung_process.py TARGET`, until it is killed."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import sys


def main(target: str, is_read: bool = False) -> None:
    """``is_read``: it takes what it does not answer; who asked cannot be killed then."""
    libc = ctypes.CDLL(None, use_errno=True)
    fuse = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0"
    # The source is its owner's choice: this is what an ordinary user's mount may look like.
    if libc.mount(b"/dev/sda1", target.encode(), b"fuse", 0, options.encode()):
        sys.exit(os.strerror(ctypes.get_errno()))
    request = os.read(fuse, 1 << 17)
    (unique,) = struct.unpack_from("=Q", request, 8)
    answer = struct.pack("=IIIIHHIIHHI7I", 7, 26, 0, 0, 0, 0, 1 << 16, 1, 0, 0, 0, *[0] * 7)[:64]
    os.write(fuse, struct.pack("=IiQ", 16 + len(answer), 0, unique) + answer)
    print("mounted", flush=True)
    while True:
        if is_read:
            os.read(fuse, 1 << 17)
        else:
            signal.pause()


if __name__ == "__main__":
    main(sys.argv[1])
