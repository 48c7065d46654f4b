# SPDX-License-Identifier: Apache-2.0
"""What a round of chaos freezes, by whom, and what its host does."""

from __future__ import annotations

import random
from typing import Any

import chaos_hooks

#: What a host does, and seconds that the agent lets a freeze last then.
SCRIPTS = {"plain": 30.0, "in a row": 30.0, "rescind": 30.0, "late": 0.1, "silent": 0.2}


class Choice:
    """What a round freezes, and how: all of it from the round's seed."""

    def __init__(self, settings: dict[str, Any], number: int, chance: random.Random) -> None:
        names: list[str] = list(settings["mounts"])
        stack: list[str] = settings["stack"]  # what lies on what, the outermost first
        self.is_service = chance.random() < 0.6
        self.over_socket = chance.random() < 0.5
        self.script = chance.choice(list(SCRIPTS))
        self.plan = chance.choices(
            ("rules", "order", "backwards", "hung"), (6, 8, 1, int(settings["hangs"]))
        )[0]
        self.is_read = chance.random() < 0.5  # whether the daemon of what hangs reads what it does not answer
        chosen = set(chance.sample(names, chance.randint(1, 4)))
        if self.plan == "backwards":
            chosen |= set(stack[-2:])
        if self.plan != "rules":  # which find all places of a file system
            chosen = chosen - set(settings["twice"]) or {stack[0]}
        # An image comes before what it lies on; the others come as it happens.
        order = [name for name in names if name in chosen and name not in stack]
        chance.shuffle(order)
        order += [name for name in (stack if self.plan == "backwards" else reversed(stack)) if name in chosen]
        self.names = order
        # By the rules, what is read-only is left alone.
        holds = [name for name in order if self.plan != "rules" or name not in settings["read_only"]]
        self.indices = [names.index(name) for name in holds]
        self.freezer = {
            "targets": [settings["mounts"][name] for name in order],
            "below": settings["below"],
            "outside": settings["outside"],
            "freeze_timeout": 1.0,  # which is all that helps against a child that was stopped while it froze
            "deadline": 5.0,
        }
        if self.plan == "rules":
            targets = list(settings["mounts"].values())
            self.freezer["rules"] = {"only": self.freezer["targets"], "loops": targets}
        if self.plan == "hung":
            self.freezer["behind"] = [f"{settings['below']}/hung-{number}/disk"]
            self.freezer["open_timeout"] = 0.2

        self.hooks = chaos_hooks.choose(chance)
        self.hook_directories = [settings["hooks"][kind] for kind in self.hooks]

    def __str__(self) -> str:
        how = f"a service, {self.script}" if self.is_service else "a freezer"
        hooks = f"hooks {' '.join(self.hooks)}" if self.hooks else "no hooks"
        return f"{how}, {'over a socket' if self.over_socket else 'by the agent'}, {hooks}, {self.plan}"
