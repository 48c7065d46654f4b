# SPDX-License-Identifier: Apache-2.0
"""What a program pays for that serves one service without an event loop."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "program",
    [
        "import hvring",
        "from hvring import serve",
        "from hvring.agent import serve, Settings, Responder",
        "from hvring.services import Kvp, Vss, Fcopy, Shutdown, TimeSync, Heartbeat",
        "from hvring.transport.virtual import connect",
        "from hvring.transport.uio import open_channel",
        "from hvring.guest.pools import Pool",
    ],
)
def test_no_event_loop_no_tls_and_no_numpy_come_along(program: str) -> None:
    heavy = "{'asyncio', 'ssl', 'numpy', 'logging', 'subprocess', 'multiprocessing'}"
    code = f"import sys; before = set(sys.modules)\n{program}\nprint(*sorted({heavy} & (set(sys.modules) - before)))"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:  # site-packages hold the package or its dependencies here
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= {"logging"}


@pytest.mark.parametrize(
    ("program", "others"),
    [
        ("from hvring import serve", {"fcopy", "heartbeat", "kvp", "shutdown", "timesync", "vss"}),
        ("from hvring.services import Heartbeat", {"fcopy", "kvp", "shutdown", "timesync", "vss"}),
        ("from hvring.services import SERVICES", set()),
    ],
)
def test_a_service_that_is_not_served_is_not_loaded(program: str, others: set[str]) -> None:
    code = f"""
import sys
{program}
print(*(name.removeprefix("hvring.services.") for name in sys.modules if name.startswith("hvring.services.")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & others
    assert others or {"fcopy", "heartbeat", "kvp", "shutdown", "timesync", "vss"} <= loaded
