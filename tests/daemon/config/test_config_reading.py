# SPDX-License-Identifier: Apache-2.0
"""A configuration file: what it sets, and that all that is wrong with it is said at once, each with its line."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvring.agent.settings import FcopySettings, KvpSettings, VssSettings
from hvring.agent.verify import SettingsError
from hvring.daemon.config import reading
from hvring.daemon.config.errors import ConfigError
from hvring.daemon.config.places import place, places
from hvring.daemon.config.schema import sections
from hvring.daemon.settings import Configuration, RunSettings, ServiceName
from hvring.vmbus import SERVICE_NAMES


def problems(text: str | bytes) -> list[tuple[int | None, str]]:
    """What is wrong with this text: lines and words."""
    data = text if isinstance(text, bytes) else text.encode()
    with pytest.raises(ConfigError) as caught:
        reading.parse(data, "here.toml")
    assert all(str(problem).startswith("here.toml") for problem in caught.value.problems)
    return [(problem.line, problem.text) for problem in caught.value.problems]


def configured(text: str) -> Configuration:
    return reading.configuration(reading.parse(text.encode(), "here.toml"))


def test_what_is_in_a_file_holds_and_the_rest_is_as_by_default() -> None:
    found = configured(
        """
        run = { services = ["kvp", "vss"], via = "utils" }
        vss.exclude = ["/mnt/*",
                       '/media/*']  # two
        [kvp]
        "timeout" = 3
        pool_directory = "/srv/pools"
        [fcopy]
        owner = [1000, 100]
        mode = 0o600
        max_size = "none"
        """
    )
    assert found.run == RunSettings(services=("kvp", "vss"), via="utils")
    assert found.services.kvp == KvpSettings("/srv/pools", timeout=3.0)
    assert isinstance(found.services.kvp.timeout, float)
    assert found.services.vss == VssSettings(exclude=("/mnt/*", "/media/*"))
    assert found.services.fcopy == FcopySettings(owner=(1000, 100), mode=0o600)


def test_all_that_is_wrong_is_said_at_once_each_with_its_line() -> None:
    found = problems(
        """max_frozen = 3
[kvp]
timeout = "soon"
pool_directory = "pools"
domain-name-age = 5
deadline = 5
[vss]
exclude = [
  "a]", # ]
  3,
]
[shutdwn]
[fcopy]
owner = [1, -1]
allow = "/srv"
max_size = 1e3
[run]
services = ["kpv"]
"via" = "zzz"
"""
    )
    expected = [
        (1, "belongs to [vss]"),
        (3, 'kvp.timeout: "soon" is not a number'),
        (4, "is no absolute path"),
        (5, "did you mean domain_name_age?"),
        (6, "it belongs to [vss]"),
        (10, "vss.exclude[2]: 3 is not a text"),
        (12, "did you mean shutdown?"),
        (14, "-1 is less than 0"),
        (15, "is not an array"),
        (16, "1000.0 is not a whole number"),
        (18, "did you mean kvp?"),
        (19, "there are auto, uio, utils"),
    ]
    assert [line for line, _ in found] == [line for line, _ in expected]
    for (_, said), (_, words) in zip(found, expected, strict=True):
        assert words in said


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("[kvp]\n\n[kvp\n", 3, "no TOML"),
        ("[kvp]\ntimeout = 1\ntimeout = 2\n", 3, "no TOML"),
        ("[kvp]\ntimeout =", 2, "no TOML"),
        ("kvp = 1", 1, "is no section"),
        ("[[kvp]]\n", 1, "is no section"),
        ("[vss]\nmax_frozen = 0\n", 2, "vss.max_frozen: 0.0 is not above 0"),
        ("[vss]\nmax_frozen = nan\n", 2, "no number to count with"),
        ("[vss]\nmax_frozen = 1000000\n", 2, "is more than 86400"),
        ("[vss]\nmax_frozen = true\n", 2, "true is not a number"),
        ("[vss]\ndeadline = 50\n", 2, "50 is not above max_frozen, which is 60"),
        ('[metrics]\nlisten = "127.0.0.1:99999"\n', 2, "no address and port"),
        ('[metrics]\nlisten = "localhost:80"\n', 2, "no address and port"),
        ("[vss]\n\nmax_frozen = 100\n", 1, "deadline: 90 is not above max_frozen, which is 100"),
        ("[run]\nvia = 'utils'\nbind = true\n", 3, "use one"),
        ("[fcopy]\nallow = ['/a', '']\n", 2, "an empty text names no file or directory"),
        ('[fcopy]\nallow = ["/a\\u0000b"]\n', 2, "is no path"),
        ('[vss]\nexclude = ["\\u0000"]\n', 2, "NUL"),
        ("[fcopy]\nmode = 0o10000\n", 2, "is more than 4095"),
        ("[kvp]\nmax_records = " + "9" * 5000, 1, "no TOML"),
        ("[kvp]\ntimeout = " + "9" * 400, 2, "too large"),
        ("[fcopy]\nowner = [1]\n", 2, "is not an array of 2"),
        (b"[kvp]\n# caf\xe9\n", 2, "not UTF-8"),
        ("[kvp]\n" + "a." * 30 + "a = 1", 2, "so many parts"),
        ("x = " + "[" * 9999, 1, "nested too deeply"),
        ("#" * 70_000, None, "more than 65536 bytes"),
        ('[kvp]\n"\\u001b[2J" = 1\n', 2, "there is no such setting"),
    ],
)
def test_one_thing_that_is_wrong(text: str | bytes, line: int | None, words: str) -> None:
    ((where, said),) = problems(text)
    assert (where, words in said) == (line, True), said


def test_what_a_file_says_is_escaped_where_people_read_it() -> None:
    with pytest.raises(ConfigError) as caught:
        reading.parse(b'[kvp]\n"\\u001b[2J\\n" = 1\n', "here.toml")
    assert str(caught.value).isprintable()


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, why in (
        (tmp_path / "none", "No such file"),
        (tmp_path, "regular"),
        (tmp_path / "pipe", "regular"),
    ):
        with pytest.raises(ConfigError, match=why) as caught:
            reading.read(path)
        assert caught.value.problems[0].path == str(path)
    assert reading.load("/dev/null") == reading.load(None) == Configuration()


def test_words_of_a_command_line_win_and_are_named_when_they_are_wrong() -> None:
    file = reading.parse(b"[vss]\nmax_frozen = 20\nexclude = ['/a']\n", "here.toml")
    found = reading.configuration(file, {("vss", "max_frozen"): 30.0, ("run", "bind"): True})
    assert found.services.vss == VssSettings(exclude=("/a",), max_frozen=30.0)
    assert found.run.bind
    with pytest.raises(ConfigError) as caught:
        reading.configuration(file, {("vss", "deadline"): 10.0})
    assert str(caught.value) == "vss.deadline: 10 is not above max_frozen, which is 20"


def test_embedders_are_held_to_the_same() -> None:
    for wrong in (
        lambda: VssSettings(max_frozen=0),
        lambda: VssSettings(deadline=10),
        lambda: KvpSettings(timeout=float("nan")),
        lambda: FcopySettings(owner=(1, 2**32 - 1)),
        lambda: FcopySettings(mode=-1),
    ):
        with pytest.raises(SettingsError):
            wrong()
        with pytest.raises(ValueError, match=":"):
            wrong()


def test_every_service_has_a_section_and_can_be_named() -> None:
    assert set(SERVICE_NAMES) <= set(sections())
    assert set(ServiceName.__args__) == set(SERVICE_NAMES)


def test_the_line_of_each_key_and_element() -> None:
    text = '''# first
a.b = """
]"" \\"""" # a text of two lines, with quotes at its end
[t."x.y"]
'k' = [1, [2,
  3], {p = 4, "q" = {r = 5}},
]
[[list]]
n = 2024-01-01 00:00:00
[[list]]
n = \'\'\'it's

\'\'\'
[list.sub]
z = 1
'''
    tomllib.loads(text)
    found = places(text)
    expected = {
        ("a",): 2,
        ("a", "b"): 2,
        ("t",): 4,
        ("t", "x.y", "k"): 5,
        ("t", "x.y", "k", 1, 1): 6,
        ("t", "x.y", "k", 2, "q", "r"): 6,
        ("list", 0, "n"): 9,
        ("list", 1): 10,
        ("list", 1, "n"): 11,
        ("list", 1, "sub", "z"): 15,
    }
    assert {path: found[path] for path in expected} == expected
    assert place(found, ("list", 1, "n", "nothing", 7)) == 11


names = st.sampled_from(
    ["kvp", "vss", "fcopy", "run", "log", "timeout", "allow", "max_frozen", "x", '"é"', "'k y'"]
)
scalars = st.sampled_from(
    [
        "1",
        "-0.5",
        "true",
        "nan",
        "inf",
        '"none"',
        "'/a'",
        '"]"',
        '"""\n]"""',
        "'''#\n'''",
        "07:00:00",
        "[",
        "{}",
        "=",
        "",
    ]
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda each: f"[{', '.join(each)}]")
        | st.tuples(names, inner).map(lambda pair: f"{{{pair[0]} = {pair[1]}}}")
    ),
    max_leaves=5,
)
lines = st.one_of(
    names.map(lambda name: f"[{name}]"),
    names.map(lambda name: f"[[{name}]]"),
    st.tuples(st.lists(names, min_size=1, max_size=3), values).map(
        lambda pair: f"{'.'.join(pair[0])} = {pair[1]}"
    ),
    st.sampled_from(["", "# comment", "\r", "\t"]),
)


def outcome(data: bytes) -> Configuration | ConfigError:
    try:
        return reading.configuration(reading.parse(data))
    except ConfigError as error:
        return error


@given(
    st.lists(lines, max_size=12).map(lambda each: "\n".join(each).encode())
    | st.text(max_size=200).map(lambda text: text.encode(errors="replace"))
    | st.binary(max_size=300)
)
def test_any_text_is_a_configuration_or_says_in_which_lines_it_is_none(data: bytes) -> None:
    found = outcome(data)
    if isinstance(found, ConfigError):
        last = data.count(b"\n") + 1
        assert found.problems
        assert all(problem.line is not None and 1 <= problem.line <= last for problem in found.problems)


@given(st.lists(lines, max_size=12).map("\n".join))
def test_every_key_that_tomllib_finds_has_a_line(text: str) -> None:
    try:
        tables = tomllib.loads(text)
    except ValueError:
        return
    found = places(text)

    def look(value: object, path: tuple[str | int, ...]) -> None:
        assert not path or path in found, path
        if isinstance(value, dict):
            for key, each in value.items():
                look(each, (*path, key))
        elif isinstance(value, list):
            for n, each in enumerate(value):
                look(each, (*path, n))

    look(tables, ())
