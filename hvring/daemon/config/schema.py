# SPDX-License-Identifier: Apache-2.0
"""What a configuration file may have in it, as the dataclasses of the settings say."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any

from hvring.agent.settings import Settings
from hvring.daemon.settings import Configuration, part


@dataclass(frozen=True, slots=True)
class Knob:
    """One setting: ``hint`` is the type that it is declared with, ``bounds`` what a number may be."""

    name: str
    says: str
    hint: Any
    default: Any  # MISSING: it must be given
    bounds: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Section:
    """One table of the file, by the dataclass that it becomes."""

    name: str
    kind: Any
    knobs: Mapping[str, Knob]

    @property
    def says(self) -> str:
        """What it is about."""
        return (inspect.getdoc(self.kind) or "").split("\n\n")[0].replace("``", "")


def sections() -> dict[str, Section]:
    """All of them by their names: those of the program, and those of the services."""
    kinds = {field.name: type(field.default) for field in fields(Configuration) if field.name != "services"}
    kinds |= {field.name: type(field.default) for field in fields(Settings) if is_dataclass(field.default)}
    return {name: Section(name, kind, knobs(kind)) for name, kind in kinds.items()}


def knobs(kind: Any) -> dict[str, Knob]:
    """The knobs of a dataclass, in its order."""
    return {
        field.name: Knob(
            field.name, field.metadata["says"], _hint(field.type, kind), _default(field), field.metadata
        )
        for field in fields(kind)
        if "says" in field.metadata
    }


def values(configuration: Configuration) -> dict[tuple[str, str], Any]:
    """What each knob is set to, by section and name."""
    return {
        (section.name, name): getattr(part(configuration, section.name), name)
        for section in sections().values()
        for name in section.knobs
    }


def _default(field: Any) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _hint(annotation: Any, kind: Any) -> Any:
    # Not typing.get_type_hints: it looks at all fields, also at those that are for embedders only.
    if isinstance(annotation, str):
        return eval(annotation, vars(sys.modules[kind.__module__]))
    return annotation
