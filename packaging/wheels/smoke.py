#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Does an installed hvring work?  Run from outside of the source tree; needs nothing but the package itself.

A ring, a channel between two processes, and the agent's data exchange with a virtual host.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import sysconfig
import tempfile
from importlib.util import find_spec

import hvring
from hvring.ring import RingConsumer, RingProducer


def ring() -> None:
    memory = bytearray(4096 + 8192)
    producer, consumer = RingProducer(memory), RingConsumer(memory)
    for number in range(10_000):  # a payload comes back in whole units of 8 bytes
        producer.send(bytes([number & 255]) * (number % 300), transaction_id=number)
        packet = consumer.recv()
        assert packet is not None
        assert packet.transaction_id == number
        assert bytes(packet.payload)[: number % 300] == bytes([number & 255]) * (number % 300)
    assert consumer.recv() is None


def batches() -> str:
    from hvring.vmbus.arrays import descriptor_dtype

    if find_spec("numpy") is None:
        said = ""
        try:
            descriptor_dtype()
        except ImportError as error:
            said = str(error)
        assert "need NumPy" in said
        return "no NumPy, and says so"
    assert descriptor_dtype().itemsize == 24
    return "with NumPy"


def command(*words: str, **more: object) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "hvring", *words],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        **more,  # type: ignore[call-overload]
    )
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return str(done.stdout)


def exchange(scratch: str) -> None:
    """The host sets a key, the agent stores it, `hvring kvp` finds it."""
    address, pools = os.path.join(scratch, "host"), os.path.join(scratch, "pools")
    host = ["host", "--socket", address]
    agent = ["run", "kvp", "--virtual", address, "--pool-dir", pools]
    programs = [
        subprocess.Popen([sys.executable, "-m", "hvring", *words], stdout=subprocess.PIPE, text=True)
        for words in ([*host, "--json"], [*agent, "--json"])
    ]
    try:
        said = programs[1].stdout
        assert said is not None
        for line in said:
            if json.loads(line).get("event") == "negotiated":
                break
        command(*host, "kvp", "set", "color", "green")
        assert command("kvp", "get", "color", "--pool-dir", pools) == "green\n"
    finally:
        for program in reversed(programs):
            program.terminate()
            program.communicate(timeout=60)
    assert [program.returncode for program in programs] == [0, 0]


def main() -> None:
    assert not os.path.exists(os.path.join(os.getcwd(), "hvring")), "run it from outside of the source tree"
    ring()
    has_numpy = batches()
    with tempfile.TemporaryDirectory() as scratch:
        exchange(scratch)
    is_free = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    if is_free:
        assert not sys._is_gil_enabled(), "an extension of hvring brought the GIL back"  # type: ignore[attr-defined,unused-ignore]
    print(
        f"hvring {hvring.__version__} works: {platform.python_implementation()} {platform.python_version()}"
        f"{' without the GIL' if is_free else ''} on {platform.machine()}, {has_numpy}"
    )


if __name__ == "__main__":
    main()
