# SPDX-License-Identifier: Apache-2.0
"""A configuration as the text of a file: the defaults with their words, or what holds and where it comes from."""

from __future__ import annotations

import enum
import os
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, is_dataclass
from typing import Any, Final, get_args

from hvring.daemon.config.reading import File
from hvring.daemon.config.schema import Knob, knobs, sections
from hvring.daemon.config.values import NONE, describe
from hvring.daemon.settings import Configuration, part

_WIDTH: Final = 100
_HEAD: Final = """\
# Configuration of `hvring run`, at /etc/hvring.toml or where --config says.  TOML: https://toml.io
#
# Every setting stands here with its default.  Take the # before a name away and change the value; what the command
# line says wins over this file.  `hvring config --check` says what is wrong; `hvring reload`, or SIGHUP, applies it
# and names what needs a restart.
"""


def defaults() -> Iterator[str]:
    """The lines of a file in which every knob stands, commented out, with its default."""
    yield from _HEAD.splitlines()
    for section in sections().values():
        yield ""
        yield f"[{section.name}]"
        yield from _comment(section.says)
        for knob in section.knobs.values():
            yield ""
            yield from _comment(f"{_sentence(knob.says)} ({kind(knob)})")
            yield from elements(section.name, knob)
            yield f"#{knob.name} = {toml(knob.default)}"


def holding(configuration: Configuration, file: File, words: Mapping[tuple[str, str], Any]) -> Iterator[str]:
    """The lines of a file that says what holds, each knob with where that comes from."""
    for section in sections().values():
        yield f"[{section.name}]"
        for name in section.knobs:
            if (section.name, name) in words:
                origin = "command line"
            elif name in file.values.get(section.name, {}):
                origin = f"line {file.line(section.name, name)}"
            else:
                origin = "default"
            yield f"{name} = {toml(getattr(part(configuration, section.name), name))}  # {origin}"
        yield ""


def toml(value: Any) -> str:
    """A knob's value as a file says it."""
    if value is None:
        return f'"{NONE}"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, enum.Enum):
        return _quoted(value.name.lower())
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str | os.PathLike):
        return _quoted(os.fspath(value))
    if isinstance(value, Mapping):
        return _table(
            (_quoted(key), each) for key, each in ((_key(key), each) for key, each in value.items())
        )
    if is_dataclass(value):
        return _table((name, getattr(value, name)) for name in knobs(type(value)))
    return f"[{', '.join(map(toml, value))}]"


def _table(pairs: Any) -> str:
    inside = ", ".join(f"{key} = {toml(each)}" for key, each in pairs)
    return f"{{ {inside} }}" if inside else "{}"


def _key(key: Any) -> str:
    return key.name.lower() if isinstance(key, enum.Enum) else str(key)


def _quoted(text: str) -> str:
    escaped = "".join(
        f"\\u{ord(letter):04x}" if ord(letter) < 32 or ord(letter) == 127 else letter
        for letter in text.replace("\\", "\\\\").replace('"', '\\"')
    )
    return f'"{escaped}"'


def kind(knob: Knob) -> str:
    """What may be its value."""
    words = [describe(knob.hint)]
    if "above" in knob.bounds:
        words.append(f"above {knob.bounds['above']:g}")
    if "least" in knob.bounds:
        words.append(f"from {knob.bounds['least']:.15g}")
    if "most" in knob.bounds:
        words.append(f"to {knob.bounds['most']:.15g}")
    return ", ".join(words)


def elements(section: str, knob: Knob) -> Iterator[str]:
    """What may be in each table of an array of tables."""
    table = next((arg for arg in _parts(knob.hint) if is_dataclass(arg)), None)
    if table is None:
        return
    yield from _comment(f"Each is a table [[{section}.{knob.name}]] with:")
    for inner in knobs(table).values():
        default = "must be given" if inner.default is MISSING else f"default: {toml(inner.default)}"
        yield from _comment(f"{inner.name}: {inner.says} ({kind(inner)}; {default})", indent="  ")


def _parts(hint: Any) -> Iterator[Any]:
    yield hint
    for arg in get_args(hint):
        yield from _parts(arg)


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:]


def _comment(text: str, indent: str = "") -> Iterator[str]:
    for line in textwrap.wrap(text, _WIDTH, subsequent_indent="  " if indent else ""):
        yield f"# {indent}{line}"
