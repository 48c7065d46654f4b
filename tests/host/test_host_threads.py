# SPDX-License-Identifier: Apache-2.0
"""Calls that never return hold up neither the loop nor the end of the program."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading

import pytest

from hvring.host import HostError
from hvring.host.threads import DaemonThreads


async def test_results_and_errors_come_through():
    threads = DaemonThreads()
    assert await threads.run(int, "ff", base=16) == 255
    with pytest.raises(ZeroDivisionError):
        await threads.run(lambda: 1 // 0)


async def test_calls_that_hang_have_a_bound_and_may_come_back():
    threads, gate = DaemonThreads(2), threading.Event()
    hanging = [asyncio.create_task(threads.run(gate.wait)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(HostError, match="2 sources do not answer"):
        await threads.run(int)
    hanging[0].cancel()
    gate.set()
    assert await hanging[1]
    while True:
        try:
            assert await threads.run(int) == 0
            break
        except HostError:  # the first thread is about to end
            pass


def test_a_program_ends_while_a_call_hangs():
    program = """
import asyncio, signal
from hvring.host.threads import DaemonThreads

async def main():
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    hanging = asyncio.create_task(DaemonThreads().run(open, "/dev/stdin", "rb", 0))
    reading = asyncio.create_task(DaemonThreads().run((await hanging).read, 1))
    await asyncio.sleep(0)
    print("hangs", flush=True)
    await stop.wait()

asyncio.run(main())
"""
    one = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert one.stdout is not None
    assert one.stdout.readline() == b"hangs\n"
    one.send_signal(signal.SIGTERM)
    assert one.wait(30) == 0
    one.communicate()
