# SPDX-License-Identifier: Apache-2.0
"""A real file system that does not answer: one in user space, whose program is not there for it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

#: An agent and a host in the namespace; the host copies into a directory that hangs, and asks for the time meanwhile.
SCENE = """
import asyncio, ctypes, os, struct, sys, threading, time
from functools import partial
from hvring.agent import Agent, FcopySettings, Settings, standard_services
from hvring.guest.files import DirectoryReceiver
from hvring.host import GuestStatusError, Timing, VirtualHost
from hvring.transport.virtual import connect_async

hung, fine, path, silent = sys.argv[1:]
device = os.open("/dev/fuse", os.O_RDWR)
libc = ctypes.CDLL(None, use_errno=True)
options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
if libc.mount(b"/dev/fuse", os.fsencode(hung), b"fuse", 0, options.encode()):
    sys.exit(77)

#: Operations of FUSE that are answered; the first one of another kind, and all after it, wait for ever.
answered = {"at once": (26,), "after the look": (26, 3, 27, 14, 17, 28, 29, 25)}[silent]

def serve():
    attributes = struct.pack("=QQQQQQIIIIIIIIII", 1, 0, 0, 0, 0, 0, 0, 0, 0, 0o40755, 2, 0, 0, 0, 4096, 0)
    bodies = {
        26: struct.pack("=IIIIHHII", 7, 26, 0, 0, 0, 0, 1 << 16, 1) + bytes(32),
        3: struct.pack("=QII", 0, 0, 0) + attributes,
        27: struct.pack("=QII", 1, 0, 0),
        14: struct.pack("=QII", 1, 0, 0),
        17: struct.pack("=QQQQQIIII6I", *([0] * 5), 512, 255, 0, 0, *[0] * 6),
    }
    while True:
        try:
            request = os.read(device, 1 << 17)
        except OSError:
            return
        _, operation, unique = struct.unpack_from("=IIQ", request)
        if operation in answered:
            body = bodies.get(operation, b"")
            os.write(device, struct.pack("=IiQ", 16 + len(body), 0, unique) + body)

threading.Thread(target=serve, daemon=True).start()

async def main():
    settings = Settings(fcopy=FcopySettings([hung, fine], timeout=5.0))
    opener = partial(connect_async, path, timeout=None, wait=True)
    services = standard_services(settings, ["fcopy", "timesync"])
    async with VirtualHost(path) as host, Agent(services, opener):
        await host.wait_ready("fcopy", "timesync")
        await host.fcopy.copy(b"x", fine, name="first")
        copy = asyncio.create_task(host.fcopy.copy(b"x", hung, name="f"))
        answers = 0
        while not copy.done():
            await host.timesync.sample()
            answers += 1
            await asyncio.sleep(0.01)
        try:
            await copy
        except GuestStatusError as error:
            print(error.request.split()[0], hex(error.status), answers > 20)
        await host.fcopy.copy(b"x", fine, name="second")
        print(sorted(os.listdir(fine)), flush=True)

asyncio.run(main())
os._exit(0)  # whose connection to the file system ends with it
"""


@pytest.mark.root
@pytest.mark.parametrize("silent", ["at once", "after the look"])
def test_a_directory_that_hangs_holds_up_nobody_and_the_next_copy_arrives(
    namespace: Any, tmp_path: Path, silent: str
) -> None:
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("no file systems in user space here")
    for name in ("hung", "fine"):
        (tmp_path / name).mkdir()
    output = namespace.run(
        "env",
        f"PYTHONPATH={ROOT}",
        sys.executable,
        "-c",
        SCENE,
        str(tmp_path / "hung"),
        str(tmp_path / "fine"),
        str(tmp_path / "sock"),
        silent,
        timeout=60,
    )
    assert output.splitlines() == ["START 0x80004005 True", "['first', 'second']"]
