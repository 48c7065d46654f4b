# SPDX-License-Identifier: Apache-2.0
"""A configuration from a file and from the words of a command line, or all that is wrong with it."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from hvring.agent.verify import SettingsError
from hvring.daemon.config import places
from hvring.daemon.config.errors import ConfigError, Problem
from hvring.daemon.config.places import Path
from hvring.daemon.config.schema import Section, sections
from hvring.daemon.config.values import shown, suggestion, table
from hvring.daemon.settings import Configuration, combined
from hvring.guest.regular import read_regular

#: Where a configuration is looked for unless another one is named.
PATH: Final = "/etc/hvring.toml"

#: Bytes; a file with every knob has some thousands.
LARGEST: Final = 1 << 16

Words = Mapping[tuple[str, str], Any]
"""What a command line says, by section and knob; it holds, whatever a file says."""

_LINE: Final = re.compile(r" \(at line (\d+), column \d+\)$")
_END: Final = " (at end of document)"
# tomllib takes time and memory by the square of these.
_ENDLESS_KEY: Final = re.compile(
    r"""(?:(?:[A-Za-z0-9_-]{1,99}|"[^"\n]{0,99}"|'[^'\n]{0,99}')[ \t]*\.[ \t]*){20}"""
)


@dataclass(frozen=True, slots=True)
class File:
    """What a file says, which is right by itself: the values of its knobs by section, and where each stands."""

    path: str | None = None
    values: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    places: Mapping[Path, int] = field(default_factory=dict)

    def has(self, section: str, knob: str) -> bool:
        """Whether that is set here."""
        return knob in self.values.get(section, {})

    def line(self, *path: str | int) -> int | None:
        """Where that is set, or else what is around it."""
        return places.place(self.places, path)


def load(path: str | os.PathLike[str] | None, words: Words | None = None) -> Configuration:
    """The configuration of the file at ``path``, None: of no file, with the ``words`` of a command line over it.

    Raises ConfigError.
    """
    return configuration(File() if path is None else read(path), words)


def read(path: str | os.PathLike[str]) -> File:
    """The file, which must be there.  Raises ConfigError."""
    name = os.fspath(path)
    try:
        data = b"" if name == os.devnull else read_regular(name, LARGEST + 1)
    except (OSError, ValueError) as problem:
        why = (problem.strerror if isinstance(problem, OSError) else None) or str(problem)
        raise ConfigError([Problem(why, name)]) from problem
    return parse(data, name)


def parse(data: bytes, path: str | None = None) -> File:
    """What is in a file's bytes; ``path`` is for what is said of it.  Raises ConfigError."""
    tables, found = _tables(data, path)
    problems: list[Problem] = []

    def complain(where: Path, text: str) -> None:
        name = "".join(f"[{part + 1}]" if isinstance(part, int) else f".{part}" for part in where)[1:]
        problems.append(Problem(f"{name[:200]}: {text}", path, places.place(found, where) or 1))

    known = sections()
    values: dict[str, dict[str, Any]] = {}
    for name, content in tables.items():
        if name not in known:
            complain((name,), _unknown(name, known))
        elif not isinstance(content, dict):
            complain((name,), f"{shown(content)} is no section: write [{name}] and its settings below")
        else:
            values[name] = _section(known, name, content, complain)
    _conflicts(values, known, complain, found)
    if problems:
        raise ConfigError(problems)
    return File(path, values, found)


def configuration(file: File, words: Words | None = None) -> Configuration:
    """What holds: the words, then the file, then the defaults.  Raises ConfigError."""
    try:
        return combined(file.values, words)
    except SettingsError as error:
        raise ConfigError(_blamed(name, text, file, words or {}) for name, text in error.problems) from error


def _blamed(name: str, text: str, file: File, words: Words) -> Problem:
    section, _, knob = name.partition(".")
    if (section, knob) in words or not file.has(section, knob):
        return Problem(f"{name}: {text}")
    return Problem(f"{name}: {text}", file.path, file.line(section, knob))


def _tables(data: bytes, path: str | None) -> tuple[dict[str, Any], dict[Path, int]]:
    def wrong(text: str, line: int | None = None) -> ConfigError:
        return ConfigError([Problem(text, path, line)])

    if len(data) > LARGEST:
        raise wrong(f"more than {LARGEST} bytes, which is no configuration")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise wrong("not UTF-8, as TOML must be", data.count(b"\n", 0, error.start) + 1) from error
    endless = _ENDLESS_KEY.search(text)
    if endless is not None:
        raise wrong("a name of so many parts is none here", text.count("\n", 0, endless.start()) + 1)
    try:
        return tomllib.loads(text), places.places(text)
    except tomllib.TOMLDecodeError as error:
        said = str(error)
        match = _LINE.search(said)
        last = max(1, len(text.splitlines()))
        line = int(match[1]) if match else last
        raise wrong(f"no TOML: {_LINE.sub('', said).removesuffix(_END)}", line) from error
    except ValueError as error:  # a number of so many digits that Python does not count them
        raise wrong(f"no TOML: {error}", 1) from error
    except RecursionError as error:
        raise wrong("nested too deeply", 1) from error


def _section(
    known: Mapping[str, Section], name: str, content: Mapping[str, Any], complain: Any
) -> dict[str, Any]:
    def refer(where: Path, text: str) -> None:
        elsewhere = [other for other, section in known.items() if where[-1] in section.knobs]
        if len(where) == 2 and where[1] not in known[name].knobs and elsewhere:
            text = f"there is no such setting; it belongs to [{'] or ['.join(elsewhere)}]"
        complain(where, text)

    return table(known[name].kind, content, (name,), refer)


def _conflicts(
    values: Mapping[str, Mapping[str, Any]],
    known: Mapping[str, Section],
    complain: Any,
    found: Mapping[Path, int],
) -> None:
    """What cannot be beside something else; with another knob than that which is said, if only that is there."""
    for name, given in values.items():
        try:
            known[name].kind(**given)
        except SettingsError as error:
            for knob, text in error.problems:
                where = (name, knob) if (name, knob) in found else (name,)
                complain(where, text if len(where) == 2 else f"{knob}: {text}")


def _unknown(name: str, known: Mapping[str, Section]) -> str:
    homes = [section for section, content in known.items() if name in content.knobs]
    if homes:
        return f"stands outside of a section; it belongs to [{'] or ['.join(homes)}]"
    return f"there is no such section{suggestion(name, known)}"
