# SPDX-License-Identifier: Apache-2.0
"""Whether settings can be meant: checked where they are made, for files, command lines and embedders alike."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from hvring.errors import HvringError


class SettingsError(HvringError, ValueError):
    """Settings that cannot be meant.  ``problems``: the name of each knob, and what is wrong with it."""

    is_final = True

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{name}: {text}" for name, text in problems))
        self.problems = problems


def verify(settings: Any) -> None:
    """Hold a dataclass to the bounds of its knobs, and then to what its ``conflicts()`` yields.

    Raises SettingsError with all that is wrong.
    """
    problems = [
        (field.name, problem)
        for field in fields(settings)
        if "says" in field.metadata
        for problem in out_of_bounds(getattr(settings, field.name), field.metadata)
    ]
    if not problems and hasattr(settings, "conflicts"):
        problems = list(settings.conflicts())
    if problems:
        raise SettingsError(problems)


def out_of_bounds(value: object, bounds: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a number, or with numbers in a row; nothing with anything else."""
    if isinstance(value, list | tuple):
        for one in value:
            yield from out_of_bounds(one, bounds)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return
    above, least, most = bounds.get("above"), bounds.get("least"), bounds.get("most")
    if not math.isfinite(value):
        yield f"{value} is no number to count with"
    elif above is not None and value <= above:
        yield f"{value} is not above {above}"
    elif least is not None and value < least:
        yield f"{value} is less than {least}"
    elif most is not None and value > most:
        yield f"{value} is more than {most:.15g}"
