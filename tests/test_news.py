# SPDX-License-Identifier: Apache-2.0
"""Each change is told once, and never a flood."""

from __future__ import annotations

import pytest

from hvring.errors import EffectError
from hvring.events import Event, EventKind, printable
from hvring.news import AUDIT_BURST, AUDIT_REFILL, BURST, LONGEST, REFILL, News


@pytest.fixture
def told():
    return []


@pytest.fixture
def now():
    return [1000.0]


@pytest.fixture
def news(told, now):
    return News(lambda kind, detail, _: told.append((kind, detail)), monotonic=lambda: now[0])


def test_a_flood_is_counted_and_said_when_that_may_be_said(news, told, now) -> None:
    for n in range(BURST + 100):
        assert news.tell(EventKind.CHANGED, str(n)) is (n < BURST)
    assert len(told) == BURST
    assert news.deadline() == pytest.approx(REFILL)
    news.tick()
    assert len(told) == BURST
    now[0] += REFILL
    assert news.deadline() == 0
    news.tick()
    assert told[BURST:] == [(EventKind.CHANGED, "100 more times")]
    assert news.deadline() is None


def test_what_was_held_back_is_said_with_the_next_one(news, told, now) -> None:
    for n in range(BURST + 3):
        news.tell(EventKind.CHANGED, str(n))
    now[0] += REFILL
    assert news.tell(EventKind.CHANGED, "then")
    assert told[-1] == (EventKind.CHANGED, "then (and 3 more before it)")


def test_kinds_do_not_wait_for_one_another(news, told) -> None:
    for _ in range(2 * BURST):
        news.tell(EventKind.CHANGED, "")
    assert news.tell(EventKind.FROZEN, "")


def test_a_failure_is_told_when_its_kind_is_new_and_again_after_it_worked(news, told) -> None:
    def failure(status: int, number: int | None = None) -> EffectError:
        error = EffectError("no", status)
        error.__cause__ = None if number is None else OSError(number, "why")
        return error

    for _ in range(5):
        news.failed("SET", failure(1))
    assert len(told) == 1
    for other in (failure(2), failure(2, 13), failure(2, 28), ValueError("no")):
        for _ in range(3):
            news.failed("SET", other)
    assert len(told) == 5
    news.failed("GET", failure(1))
    assert len(told) == 6
    news.worked("GET")
    assert told[6:] == [(EventKind.RECOVERED, "GET works again")]
    news.worked("GET")
    news.failed("GET", failure(1))
    assert len(told) == 8


def test_what_a_host_makes_fail_in_ever_new_ways_has_a_bound(news, told) -> None:
    for n in range(10000):
        news.failed(f"name {n}", EffectError("no"))
    assert len(told) == BURST
    assert len(news._failures) <= 64


def test_a_detail_has_a_longest_length(news, told) -> None:
    news.tell(EventKind.ASKED, "x" * 100000)
    assert len(told[0][1]) <= LONGEST + 1


def test_a_listener_that_tells_something_itself_does_no_harm(now) -> None:
    def listen(kind: EventKind, detail: str, _: object) -> None:
        if kind is EventKind.CHANGED:
            news.tell(EventKind.ASKED, "by the listener")

    news = News(listen, monotonic=lambda: now[0])
    for _ in range(BURST + 1):
        news.tell(EventKind.CHANGED, "")
    now[0] += REFILL
    news.tick()


@pytest.mark.parametrize("text", ["\x1b[2J", "a\nb", "\u202eabc", "\ud800", "\x9b31m", "\u2028"])
def test_an_event_is_one_printable_line(text) -> None:
    line = str(Event("kvp", EventKind.CHANGED, text))
    assert line.isprintable()
    assert line.encode()


def test_letters_of_all_languages_stay_as_they_are() -> None:
    assert printable("Grüße, 世界 😀") == "Grüße, 世界 😀"


def test_a_record_of_what_a_host_did_has_a_limit_of_its_own_and_a_count(told, now) -> None:
    facts: list[object] = []

    def listen(kind: EventKind, detail: str, more: object) -> None:
        told.append((kind, detail))
        facts.append(more)

    news = News(listen, monotonic=lambda: now[0])
    for _ in range(2 * BURST):
        news.tell(EventKind.FAILED, "something else")
    for n in range(AUDIT_BURST + 7):
        assert news.tell(EventKind.FAILED, str(n), {"n": n}, audit=True) is (n < AUDIT_BURST)
    now[0] += AUDIT_REFILL
    assert news.tell(EventKind.FAILED, "then", {"n": 0}, audit=True)
    assert facts[-1] == {"n": 0, "suppressed": 7}
    assert len(told) == BURST + AUDIT_BURST + 1
