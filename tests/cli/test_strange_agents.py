# SPDX-License-Identifier: Apache-2.0
"""Whoever else listens where an agent is looked for: what it answers ends no command with a traceback, nor obeys."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hvring.cli import main

PROCESS = {
    "name": "a",
    "version": "1",
    "rehearsal": False,
    "started_at": 0,
    "pid": 1,
    "uptime": 1,
    "config": None,
    "config_read_at": 1,
}
RIGHT = {"process": PROCESS, "ok": True, "quiet": False, "health": None, "services": {}, "problems": []}
COMMANDS = [
    ["status"],
    ["status", "--json"],
    ["metrics"],
    ["reload"],
    ["freeze", "--plan"],
    ["health", "show"],
    ["health", "set", "healthy"],
    ["time"],
    ["time", "--json"],
]
ANSWERS = [
    {},
    {"said": 5},
    {"said": [{"x": "\x1b"}]},
    {"state": "x", "sources": 5},
    {"state": "\x1b", "sources": [{"name": 1}]},
    {**RIGHT, "process": {**PROCESS, "config": "x", "config_read_at": 1e300}},
    {**RIGHT, "process": {**PROCESS, "uptime": float("inf")}},
    {**RIGHT, "services": {"x\x1b[31m": None}},
    {"obstacle": "\x1b", "order": 5},
    {"obstacle": None, "order": [], "skipped": [{}], "hazards": 3, "by": 2},
    {
        "process": {"pid": 1},
        "services": {
            "timesync": {"time": {"offset_ns": 5, "uncertainty_ns": 7, "age": 1, "bias_ns": "\x1b"}}
        },
    },
    {
        "process": {"pid": 1},
        "services": {"timesync": {"time": {"offset_ns": 10**400, "uncertainty_ns": 7, "age": 1}}},
    },
]


@pytest.fixture
def strange(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """``strange(*messages)`` listens, says them to each who asks, and gives its path."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "strange"))
        listener.listen(10)
        said: list[bytes] = []

        def serve() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                with client:
                    client.recv(65536)
                    client.sendall(b"".join(said))

        thread = threading.Thread(target=serve)
        thread.start()

        def listen(*messages: Any) -> str:
            said[:] = [json.dumps(message).encode() + b"\n" for message in messages]
            return str(tmp_path / "strange")

        yield listen
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_an_answer_that_is_none_is_said_to_be_none(
    words: list[str], strange: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    for answer in ANSWERS:
        status = main([*words, "--control", strange({"result": answer})])
        told = capsys.readouterr()
        assert "\x1b" not in told.out + told.err
        assert status in (0, 1)
        assert told.out or told.err


@pytest.mark.parametrize(
    "change",
    [
        {"changed": 5, "result": RIGHT},
        {"changed": [{}], "result": RIGHT},
        {"changed": [{"at": 1e300, "service": "\x1b", "event": "x", "detail": "\x1b"}], "result": RIGHT},
        {"changed": [{"at": "x"}], "result": RIGHT},
        {"changed": [], "result": 5},
        {"error": "\x1b"},
        {},
    ],
)
def test_a_change_that_is_none_ends_the_watch(
    change: dict[str, Any], strange: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "--watch", "--control", strange({"result": RIGHT}, change)]) in (1, 3)
    told = capsys.readouterr()
    assert "all is well" in told.out
    assert "\x1b" not in told.out + told.err
