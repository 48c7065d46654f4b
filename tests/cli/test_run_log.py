# SPDX-License-Identifier: Apache-2.0
"""What `hvring run` writes down of what a host did, on its one stream."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

HVRING = [sys.executable, "-W", "error", "-m", "hvring"]


def test_copies_and_orders_are_on_record_on_one_stream(tmp_path: Path, start) -> None:
    socket, source = tmp_path / "host.sock", tmp_path / "source"
    source.write_bytes(os.urandom(100_001))
    (tmp_path / "in").mkdir()
    start("host", "--socket", socket)
    run = ["run", "fcopy", "shutdown", "--virtual", socket, "--allow", tmp_path / "in", "--json"]
    agent = start(*run, stderr=subprocess.STDOUT)
    for _ in range(2):
        agent.wait_for("negotiated")
    host = [*HVRING, "host", "--socket", socket]
    subprocess.run([*host, "copy", source, f"{tmp_path}/in/"], check=True, timeout=60)
    copied = json.loads(agent.wait_for('"copied"'))
    assert copied["sha256"] == sha256(source.read_bytes()).hexdigest()
    assert (copied["path"], copied["size"]) == (str(tmp_path / "in" / "source"), 100_001)
    assert subprocess.run([*host, "copy", source, "/etc/"], capture_output=True, timeout=60).returncode
    refused = json.loads(agent.wait_for('"failed"'))
    assert (refused["path"], refused["reason"], refused["level"]) == ("/etc/", "not_allowed", "error")
    text = "two\nlines \u202e\x7f"
    subprocess.run([*host, "shutdown", "--text", text], check=True, timeout=60)
    order = json.loads(agent.wait_for('"asked"', "power off"))
    assert (order["text"], order["action"], order["force"]) == (text, "power off", False)
    assert agent.end() == 0
    lines = [json.loads(line) for line in agent.lines]  # nothing else is on it
    assert lines[-1]["event"] == "summary"
    assert lines[-1]["services"]["fcopy"]["failures"] == {"not_allowed": 1}
    assert [line["time"] for line in lines] == sorted(line["time"] for line in lines)
