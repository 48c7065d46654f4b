# SPDX-License-Identifier: Apache-2.0
"""From a value of TOML to one of a knob's type, by that type; and what is wrong if it is not one."""

from __future__ import annotations

import enum
import math
import os
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, is_dataclass
from typing import Any, Final, Literal, Union, get_args, get_origin

from hvring.agent.verify import SettingsError, out_of_bounds
from hvring.daemon.config.places import Path
from hvring.daemon.config.schema import Knob, knobs

#: How a file says "as if there were none"; TOML has no word of its own for it.
NONE: Final = "none"

Complain = Callable[[Path, str], None]

_UNIONS: Final = (Union, types.UnionType)
_ROWS: Final = (Sequence, list, tuple)
_NAMES: Final = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "an array",
    dict: "a table",
}


class WrongValueError(Exception):
    """It was complained of."""


def convert(knob: Knob, value: object, path: Path, complain: Complain) -> Any:
    """The knob's value; ``complain`` hears where in the value what is wrong.  Raises WrongValueError then."""
    found = _convert(knob.hint, value, path, complain)
    problems = list(out_of_bounds(found, knob.bounds))
    for problem in problems:
        complain(path, problem)
    if problems:
        raise WrongValueError
    return found


def table(kind: Any, value: Mapping[str, object], path: Path, complain: Complain) -> dict[str, Any]:
    """The arguments for a dataclass from a table, as far as they are right; ``complain`` hears of the others."""
    known = knobs(kind)
    found: dict[str, Any] = {}
    for name, each in value.items():
        if name not in known:
            complain((*path, name), f"there is no such setting{suggestion(name, known)}")
            continue
        try:
            found[name] = convert(known[name], each, (*path, name), complain)
        except WrongValueError:
            continue
    return found


def suggestion(word: str, known: Mapping[str, object] | Sequence[str]) -> str:
    """``; did you mean max_frozen?``, or what there is if nothing is near."""
    import difflib

    near = difflib.get_close_matches(word.lower().replace("-", "_")[:100], list(known), 1, 0.5)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; there are {', '.join(known)}" if known else ""


def describe(hint: Any) -> str:
    """A type, for people."""
    origin, args = get_origin(hint), get_args(hint)
    if _is_path(hint):
        return "the absolute path of a file or directory"
    if origin in _UNIONS:
        return " or ".join(describe(arg) if arg is not types.NoneType else f'"{NONE}"' for arg in args)
    if origin is Literal:
        return " or ".join(f'"{arg}"' for arg in args)
    if origin is tuple and args[-1] is not ...:
        return f"an array of {len(args)}: {', '.join(map(describe, args))}"
    if origin in _ROWS:
        return f"an array, each {describe(args[0])}"
    if origin in (Mapping, dict):
        return f"a table, each value {describe(args[1])}"
    if is_dataclass(hint):
        return "a table"
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return " or ".join(f'"{name.lower()}"' for name in hint.__members__)
    return _NAMES[hint]


def _convert(hint: Any, value: object, path: Path, complain: Complain) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin in _UNIONS and types.NoneType in args and value == NONE:
        return None
    if _is_path(hint):
        return _path(value, path, complain)
    if origin in _UNIONS:
        return _one_of(hint, [arg for arg in args if arg is not types.NoneType], value, path, complain)
    if origin is Literal:
        if value in args and isinstance(value, str):
            return value
        return _not(hint, value, path, complain, args)
    if origin in _ROWS:
        return _row(hint, value, path, complain)
    if origin in (Mapping, dict):
        if not isinstance(value, dict):
            return _not(hint, value, path, complain)
        return _mapping(args, value, path, complain)
    if is_dataclass(hint):
        return _made(hint, value, path, complain)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        members = {name.lower(): member for name, member in hint.__members__.items()}
        if isinstance(value, str) and value.lower() in members:
            return members[value.lower()]
        return _not(hint, value, path, complain, list(members))
    return _plain(hint, value, path, complain)


def _plain(hint: Any, value: object, path: Path, complain: Complain) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            value = float(value)
        except OverflowError:
            complain(path, "the number is too large")
            raise WrongValueError from None
    if type(value) is not hint:
        return _not(hint, value, path, complain)
    if isinstance(value, str) and "\0" in value:
        complain(path, "a text with a NUL in it is no use to anybody")
        raise WrongValueError
    return value


def _path(value: object, path: Path, complain: Complain) -> str:
    if not isinstance(value, str) or "\0" in value:
        complain(path, f"{shown(value)} is no path")
    elif not value:
        complain(path, "an empty text names no file or directory")
    elif not value.startswith("/"):
        complain(path, f"{shown(value)} is no absolute path: nobody knows where it would start")
    else:
        return value
    raise WrongValueError


def _one_of(hint: Any, hints: list[Any], value: object, path: Path, complain: Complain) -> Any:
    if len(hints) == 1:  # its own words are the better ones
        return _convert(hints[0], value, path, complain)
    for each in hints:
        try:
            return _convert(each, value, path, lambda *_: None)
        except WrongValueError:
            continue
    return _not(hint, value, path, complain)


def _row(hint: Any, value: object, path: Path, complain: Complain) -> tuple[Any, ...]:
    args = get_args(hint)
    is_fixed = get_origin(hint) is tuple and args[-1] is not ...
    if not isinstance(value, list) or (is_fixed and len(value) != len(args)):
        return tuple(_not(hint, value, path, complain))
    hints = args if is_fixed else [args[0]] * len(value)
    found: list[Any] = []
    wrong = False
    for n, (each_hint, each) in enumerate(zip(hints, value, strict=True)):
        try:
            found.append(_convert(each_hint, each, (*path, n), complain))
        except WrongValueError:
            wrong = True
    if wrong:
        raise WrongValueError
    return tuple(found)


def _mapping(args: Sequence[Any], value: dict[str, object], path: Path, complain: Complain) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    wrong = False
    for key, each in value.items():
        try:
            found[_convert(args[0], key, (*path, key), complain)] = _convert(
                args[1], each, (*path, key), complain
            )
        except WrongValueError:
            wrong = True
    if wrong:
        raise WrongValueError
    return found


def _made(kind: Any, value: object, path: Path, complain: Complain) -> Any:
    """A dataclass from a table."""
    if not isinstance(value, dict):
        return _not(kind, value, path, complain)
    found = table(kind, value, path, complain)
    missing = [name for name, knob in knobs(kind).items() if knob.default is MISSING and name not in value]
    for name in missing:
        complain(path, f"{name} is missing")
    if missing or found.keys() != value.keys():
        raise WrongValueError
    try:
        return kind(**found)
    except SettingsError as error:
        for name, problem in error.problems:
            complain((*path, name), problem)
    except ValueError as error:
        complain(path, str(error))
    raise WrongValueError


def _not(hint: Any, value: object, path: Path, complain: Complain, choices: Sequence[Any] = ()) -> Any:
    if choices and isinstance(value, str):
        complain(path, f"{shown(value)} is none of its words{suggestion(value, list(map(str, choices)))}")
    else:
        complain(path, f"{shown(value)} is not {describe(hint)}")
    raise WrongValueError


def shown(value: object) -> str:
    """A value of a file, for people: short, whatever was in the file."""
    if isinstance(value, dict | list):
        return _NAMES[type(value)]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and value.bit_length() > 1000:
        return "a huge number"
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_path(hint: Any) -> bool:
    return any(arg is os.PathLike or get_origin(arg) is os.PathLike for arg in get_args(hint))
