# SPDX-License-Identifier: Apache-2.0
"""One event is one line, whatever a host wrote, with its time; and nothing is written while file systems are frozen."""

from __future__ import annotations

import ast
import json
import logging
import math
import os
import re
import select
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvring.daemon import forms
from hvring.daemon.lines import Lines
from hvring.daemon.log import Log, is_journal
from hvring.daemon.settings import LogSettings
from hvring.events import Event, EventKind

ANYTHING = st.text(st.characters(exclude_categories=[]))  # halves of characters, too
VALUES = st.one_of(ANYTHING, st.integers(), st.floats(), st.booleans(), st.none())
FACTS = st.dictionaries(ANYTHING.filter(bool), VALUES, max_size=4)
PAIR = re.compile(r'([^ =]+)=("(?:[^"\\]|\\.)*"|[^ "]*)(?: |$)')


def line(detail: str, facts: dict[str, Any]) -> forms.Line:
    return forms.Line(1e9, 20, "changed", "kvp", detail, facts)


def parsed(text: str) -> list[tuple[str, str]]:
    """As a program that reads it would: the pairs, and nothing between them."""
    found, at = [], 0
    while at < len(text):
        match = PAIR.match(text, at)
        assert match, text[at:]
        name, value = match.groups()
        found.append((name, ast.literal_eval(value) if value.startswith('"') else value))
        at = match.end()
    return found


@given(ANYTHING, FACTS)
def test_a_line_of_text_is_one_and_says_what_was_said(detail: str, facts: dict[str, Any]) -> None:
    text = forms.text(line(detail, facts), stamped=True, rehearsal=False)
    assert text.isprintable()
    pairs = parsed(text)
    assert pairs[:4] == [
        ("time", "2001-09-09T01:46:40.000Z"),
        ("level", "info"),
        ("event", "changed"),
        ("service", "kvp"),
    ]
    assert not detail or pairs[-1] == ("detail", detail)
    told = [value for value in facts.values() if isinstance(value, str) and value]
    between = [value for _, value in (pairs[4:-1] if detail else pairs[4:])]
    assert [value for value in between if value in told] == told or len(between) > len(told)


@given(ANYTHING, FACTS)
def test_a_line_of_json_is_valid_whatever_it_holds(detail: str, facts: dict[str, Any]) -> None:
    said = forms.json(line(detail, facts), stamped=True, rehearsal=True)
    assert said.isascii()
    assert said.isprintable()

    def refuse(word: str) -> None:
        raise AssertionError(word)

    found = json.loads(said, parse_constant=refuse)
    json.dumps(found, ensure_ascii=False).encode()  # no half of a character
    assert (found["event"], found["service"], found["rehearsal"]) == ("changed", "kvp", True)
    assert found["detail"] == detail.encode("utf-8", "backslashreplace").decode()
    for value in facts.values():
        if isinstance(value, float) and not math.isfinite(value):
            assert None in found.values()


@given(ANYTHING, FACTS)
def test_words_for_people_are_one_line(detail: str, facts: dict[str, Any]) -> None:
    assert forms.words(line(detail, facts), stamped=True, rehearsal=True).isprintable()


@pytest.mark.parametrize("form", ["text", "json"])
def test_the_journal_gets_a_priority_and_no_time(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    found = os.fstat(writer)
    monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
    with open(writer, "w") as stream, Lines(stream) as say:
        log = Log(say, LogSettings(form=form), rehearsal=False)  # type: ignore[arg-type]
        log.event(Event("vss", EventKind.FROZEN, "/"))
        log.event(Event("vss", EventKind.FAILED, "no"))
        log.event(
            Event("vss", EventKind.REFUSED, "late", at=1e9)
        )  # the journal would be wrong about this one
    with open(reader) as out:
        lines = out.read().splitlines()
    assert [said[:3] for said in lines] == ["<6>", "<3>", "<4>"]
    assert ["time" in said.split("detail")[0] for said in lines] == [False, False, True]
    assert not is_journal(reader, {"JOURNAL_STREAM": "1:2"})


def test_levels_are_left_out_and_change_while_it_runs(stream) -> None:
    say, read = stream
    log = Log(say, LogSettings(form="text", level="warning"), rehearsal=True)
    log.event(Event("vss", EventKind.FROZEN))
    log.event(Event("vss", EventKind.FAILED, "one"))
    log.adopt(LogSettings(form="json", level="info"))
    log.event(Event("vss", EventKind.FROZEN))
    first, second = read(2)
    assert "level=error rehearsal=true event=failed service=vss detail=one" in first
    assert json.loads(second)["event"] == "frozen"


@pytest.fixture
def stream() -> Iterator[tuple[Lines, Any]]:
    """Lines, and what waits for so many of them."""
    reader, writer = os.pipe()
    got = bytearray()

    def read(count: int) -> list[str]:
        while got.count(b"\n") < count:
            assert select.select([reader], [], [], 60)[0]
            got.extend(os.read(reader, 65536))
        return got.decode().splitlines()

    read.is_silent = lambda: not select.select([reader], [], [], 0)[0]  # type: ignore[attr-defined]
    with open(writer, "w") as out, Lines(out) as say:
        yield say, read
    os.close(reader)


class AskedAgent:
    """``asked`` is set once the thread that writes was told to be quiet."""

    def __init__(self) -> None:
        self.frozen = False
        self.asked = threading.Event()

    @property
    def quiet(self) -> bool:
        if self.frozen and threading.current_thread().name == "hvring-lines":
            self.asked.set()
        return self.frozen


def test_nothing_is_written_while_frozen_and_then_all_in_order_with_its_time(stream) -> None:
    say, read = stream
    agent = AskedAgent()
    log = Log(say, LogSettings(form="json"), rehearsal=False)
    log.follow(agent)  # type: ignore[arg-type]
    log.event(Event("vss", EventKind.ASKED, "freeze"))
    read(1)
    agent.frozen = True
    with log.heard():
        for n in range(10):
            log.event(Event("vss", EventKind.CHANGED, f"event {n}"))
            logging.getLogger("hvring.test").warning("record %d", n)
    assert agent.asked.wait(60)  # by the thread that writes, which has a line and holds it back
    assert read.is_silent()
    agent.frozen = False
    log.calm()
    lines = [json.loads(said) for said in read(21)][1:]
    assert [found["detail"] for found in lines] == [
        f"{what} {n}" for n in range(10) for what in ("event", "record")
    ]
    assert sorted(found["time"] for found in lines) == [found["time"] for found in lines]


def test_more_than_can_be_kept_is_counted(stream) -> None:
    say, read = stream
    agent = SimpleNamespace(quiet=True)
    log = Log(say, LogSettings(form="json"), rehearsal=False)
    log.follow(agent)  # type: ignore[arg-type]
    for n in range(1500):
        log.event(Event("vss", EventKind.CHANGED, str(n)))
    agent.quiet = False
    log.calm()
    kept = len(read(1000))
    log.event(Event("vss", EventKind.THAWED))
    lines = [json.loads(said) for said in read(kept + 2)]
    lost = next(found["lines"] for found in lines if found["event"] == "lost")
    assert lost + sum(found["event"] == "changed" for found in lines) == 1500


def test_a_flood_of_records_is_counted(stream) -> None:
    say, read = stream
    log = Log(say, LogSettings(form="json"), rehearsal=False)
    with log.heard():
        for n in range(700):
            logging.getLogger("hvring.test").warning("record %d", n)
        logging.getLogger("hvring.test").error("of another level")
        log.end(SimpleNamespace(services={}, stats=dict))  # type: ignore[arg-type]
    lines = [json.loads(said) for said in read(203)]
    assert sum("suppressed" in found for found in lines) >= 1
    assert (
        sum(found.get("suppressed", 0) for found in lines)
        + sum(found["detail"].startswith("record") for found in lines)
        == 700
    )
    assert any(found["detail"] == "of another level" for found in lines)


def test_a_traceback_is_in_its_line_and_a_bad_record_is_one_too(stream) -> None:
    say, read = stream
    log = Log(say, LogSettings(form="text"), rehearsal=False)
    with log.heard():
        try:
            raise ValueError("a bug\n\x1b[2J")
        except ValueError:
            logging.getLogger("hvring.test").exception("it happened")
        logging.getLogger("hvring.test").warning("%d", "no number")
    first, second = read(2)
    assert "a bug" in first
    assert "Traceback" in first
    assert first.isprintable()
    assert "cannot be shown" in second
