# SPDX-License-Identifier: Apache-2.0
"""A machine that allows no more threads (TasksMax of a unit, for one) ends no service."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest

from hvring.daemon.lines import Lines
from hvring.guest.identity import DomainName
from hvring.host import HostError
from hvring.host.threads import DaemonThreads


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    return monkeypatch


def test_lines_are_counted_and_come_once_there_is_a_thread(no_threads: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    with open(writer, "w") as stream, Lines(stream) as say:
        say("one")
        say("two")
        no_threads.undo()
        say("three")
    with open(reader) as said:
        assert said.read().splitlines() == ["(2 lines were lost: nobody read)", "three"]


def test_an_output_without_a_thread_to_the_end_is_no_error(no_threads: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    with open(writer, "w") as stream, Lines(stream) as say:
        say("one")
    os.close(reader)


def test_the_domain_name_is_looked_for_again_later(no_threads: pytest.MonkeyPatch) -> None:
    now = 0.0
    name = DomainName(lambda host: f"{host}.test", timeout=60, monotonic=lambda: now)
    plain = name.get()
    assert "." not in plain or not plain.endswith(".test")
    no_threads.undo()
    now = 1000.0
    assert name.get() == f"{plain}.test"


def test_a_hosts_verb_says_why_it_cannot(no_threads: pytest.MonkeyPatch) -> None:
    with pytest.raises(HostError, match="can't start"):
        asyncio.run(DaemonThreads().run(int))
