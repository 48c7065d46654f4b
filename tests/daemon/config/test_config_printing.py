# SPDX-License-Identifier: Apache-2.0
"""`hvring config`, and that what it prints is a configuration."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import pytest

from hvring.agent.settings import Path as PathKnob
from hvring.agent.settings import knob
from hvring.agent.verify import verify
from hvring.cli import main
from hvring.daemon.config import printing, reading
from hvring.daemon.config.schema import knobs, sections, values
from hvring.daemon.config.values import WrongValueError, convert, describe
from hvring.daemon.settings import Configuration


def uncommented(text: str) -> str:
    return re.sub(r"^#(?=[a-z])", "", text, flags=re.MULTILINE)


def test_the_printed_defaults_are_the_defaults_and_every_knob_is_among_them() -> None:
    text = "\n".join(printing.defaults())
    assert reading.configuration(reading.parse(text.encode())) == Configuration()
    file = reading.parse(uncommented(text).encode())
    assert values(reading.configuration(file)) == values(Configuration())
    named = {(section, name) for section, given in file.values.items() for name in given}
    declared = {
        (kind, each.name)
        for kind in sections()
        for each in fields(sections()[kind].kind)
        if "says" in each.metadata
    }
    assert named == declared == set(values(Configuration()))
    assert {("kvp", "timeout"), ("vss", "deadline"), ("run", "bind"), ("log", "level")} <= named


def test_every_knob_has_words_and_a_type_that_a_file_can_have() -> None:
    for section in sections().values():
        assert section.says
        for each in section.knobs.values():
            assert each.says[0].islower() or not each.says[0].isalpha() or each.says.split()[0].isupper()
            assert describe(each.hint)


def test_check_says_each_problem_on_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "hvring.toml"
    path.write_text("[kvp]\ntimeout = 1\n")
    assert main(["config", "--check", str(path)]) == 0
    assert capsys.readouterr() == (f"{path}: right\n", "")
    path.write_text("[kvp]\ntimeot = 1\n[vss]\nmax_frozen = 0\n")
    assert main(["config", "--check", str(path)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        f"{path}:2: kvp.timeot: there is no such setting; did you mean timeout?",
        f"{path}:4: vss.max_frozen: 0.0 is not above 0",
    ]


def test_defaults_are_printed_by_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--print-defaults"]) == 0
    assert capsys.readouterr().out.splitlines() == list(printing.defaults())


def test_show_says_what_holds_and_where_it_comes_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "hvring.toml"
    path.write_text('[vss]\n\nexclude = ["/a\\"\\\\\\u007f"]\n')
    assert main(["config", "--show", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "timeout = 2.0  # default" in shown
    assert "  # line 3" in shown
    assert reading.load(path) == reading.configuration(reading.parse(shown.encode()))


class Colour(enum.Enum):
    RED = 1
    DARK_BLUE = 2


@dataclass(frozen=True, slots=True)
class Check:
    url: str = field(metadata={"says": "what to ask"})
    every: float = knob(10.0, "seconds between two", above=0)

    def __post_init__(self) -> None:
        verify(self)


@dataclass(frozen=True, slots=True)
class Odd:
    """Of all types."""

    checks: Sequence[Check] = knob((), "checks")
    ages: Mapping[str, float] = field(default_factory=dict, metadata={"says": "ages"})
    colour: Colour = knob(Colour.RED, "a colour")
    either: int | str = knob(1, "one or the other")
    where: PathKnob | None = knob(None, "a place")
    rows: Sequence[Sequence[str]] = knob((), "rows")
    size: Literal["s", "m"] = knob("s", "a size")
    embedded: object = None


def converted(name: str, value: Any) -> Any:
    said: list[tuple[Any, str]] = []
    try:
        return convert(knobs(Odd)[name], value, (name,), lambda path, text: said.append((path, text)))
    except WrongValueError:
        assert said
        return said


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("checks", [{"url": "a"}, {"url": "b", "every": 1}], (Check("a"), Check("b", 1.0))),
        ("ages", {"/a": 1, "/b": 2.5}, {"/a": 1.0, "/b": 2.5}),
        ("colour", "dark_blue", Colour.DARK_BLUE),
        ("either", 3, 3),
        ("either", "x", "x"),
        ("where", "none", None),
        ("where", "/x", "/x"),
        ("rows", [["a", "b"], []], (("a", "b"), ())),
    ],
)
def test_types_that_knobs_may_have(name: str, value: Any, found: Any) -> None:
    assert converted(name, value) == found


@pytest.mark.parametrize(
    ("name", "value", "where", "words"),
    [
        ("checks", [{"every": 1}], ("checks", 0), "url is missing"),
        ("checks", [{"url": "a"}, {"url": "b", "evry": 1}], ("checks", 1, "evry"), "did you mean every?"),
        ("checks", [{"url": "a", "every": 0}], ("checks", 0, "every"), "not above 0"),
        ("checks", {}, ("checks",), "is not an array"),
        ("ages", {"/a": "old"}, ("ages", "/a"), "is not a number"),
        ("colour", "dark_blu", ("colour",), "did you mean dark_blue?"),
        ("colour", 1, ("colour",), 'is not "red" or "dark_blue"'),
        ("either", 1.5, ("either",), "is not a whole number or a text"),
        ("rows", [["a"], "b"], ("rows", 1), "is not an array"),
        ("size", "x", ("size",), "there are s, m"),
    ],
)
def test_what_is_no_value_of_a_type(name: str, value: Any, where: Any, words: str) -> None:
    ((path, said),) = converted(name, value)
    assert path == where
    assert words in said


def test_a_table_of_tables_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    from hvring.daemon.config.schema import Section

    odd = {"odd": Section("odd", Odd, knobs(Odd))}
    monkeypatch.setattr(printing, "sections", lambda: odd)
    text = "\n".join(printing.defaults())
    assert "# Each is a table [[odd.checks]] with:\n" in text
    assert "#   url: what to ask (a text; must be given)\n" in text
    assert "embedded" not in text
    assert '#colour = "red"' in text
