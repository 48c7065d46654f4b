# SPDX-License-Identifier: Apache-2.0
"""What scenario files say about themselves, read without running them, and which of them go into one boot."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DIRECTORY = Path(__file__).parents[1] / "scenarios"
_GUEST: dict[str, Any] = {
    "memory": "768M",
    "cpus": 1,
    "services": ["shutdown", "timesync", "heartbeat", "kvp", "vss", "fcopy"],
    "subchannels": {},  # service: how many its device can offer, see Device.offer_subchannels
    "balloon": False,
    "append": "",
}


@dataclass(frozen=True, slots=True)
class Scenario:
    """``guest``: the machine it wants, all keys given; ``before``: the scenario that runs behind it in the same
    boot, if that is chosen too; ``seconds``: its time limit, on top of the boot's."""

    name: str
    guest: dict[str, Any]
    before: str
    seconds: float


def names(directory: Path = DIRECTORY) -> list[str]:
    """All scenarios there are; files that start with an underscore or end in _guest are parts of others."""
    return sorted(
        p.stem for p in directory.glob("*.py") if not p.stem.startswith("_") and not p.stem.endswith("_guest")
    )


def read(name: str, directory: Path = DIRECTORY) -> Scenario:
    """Its GUEST (over the defaults), RUNS_BEFORE ("") and SECONDS (120). ValueError for an unknown key."""
    own: dict[str, Any] = {"GUEST": {}, "RUNS_BEFORE": "", "SECONDS": 120}
    for node in ast.parse((directory / f"{name}.py").read_text()).body:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id in own
        ):
            own[node.targets[0].id] = ast.literal_eval(node.value)
    if unknown := set(own["GUEST"]) - set(_GUEST):
        raise ValueError(f"{name}: GUEST has no {', '.join(sorted(unknown))}")
    return Scenario(name, _GUEST | own["GUEST"], own["RUNS_BEFORE"], own["SECONDS"])


def of_kernel(wanted: str, otherwise: Sequence[str]) -> tuple[str, list[str]]:
    """The kernel and the scenarios that ``KERNEL:NAME,NAME`` asks for, or all ``otherwise`` for only ``KERNEL``."""
    kernel, _, own = wanted.partition(":")
    return kernel, own.split(",") if own else list(otherwise)


def boots(scenarios: Sequence[Scenario]) -> list[list[Scenario]]:
    """Each scenario has a boot of its own, but for one that names another with the same guest: it goes before it."""
    groups = {scenario.name: [scenario] for scenario in scenarios}
    for scenario in scenarios:
        behind = groups.get(scenario.before)
        if behind and behind[-1].guest == scenario.guest:
            groups[scenario.before] = groups.pop(scenario.name) + behind
    return list(groups.values())
