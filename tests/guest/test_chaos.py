# SPDX-License-Identifier: Apache-2.0
"""Agent, guardian and its child, killed and stopped at random while they freeze, hold and thaw real file systems.

HVRING_CHAOS_ROUNDS: how many rounds, HVRING_CHAOS_SEED: which ones.  After each, nothing may be frozen.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.root

PROGRAM = Path(__file__).with_name("chaos_process.py")
ROOT = Path(__file__).parents[2]
ROUNDS = int(os.environ.get("HVRING_CHAOS_ROUNDS", "30"))
SEED = os.environ.get("HVRING_CHAOS_SEED", "1")
BOUND = 60.0


@pytest.mark.parametrize("started", ["by the agent", "over a socket"])
def test_whoever_is_killed_or_stopped_at_whatever_moment_nothing_stays_frozen(
    namespace: Any, processes: contextlib.ExitStack, started: str
) -> None:
    targets = [
        namespace.mount_image("ext4"),
        namespace.mount_image("xfs", kind="xfs", size=320),
        namespace.mount_image("btrfs", kind="btrfs", size=128),
    ]
    settings = {
        "targets": targets,
        "below": str(namespace.folder),
        "outside": os.readlink("/proc/self/ns/mnt"),
        "freeze_timeout": 1.0,  # which is all that helps against a child that was stopped while it froze
        "deadline": 5.0,
        "rounds": ROUNDS,
        "seed": SEED,
        **({"listener": f"{namespace.folder}/guardian"} if started == "over a socket" else {}),
    }
    chaos = subprocess.Popen(
        namespace.inside(sys.executable, str(PROGRAM), json.dumps(settings)),
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    processes.callback(chaos.communicate)
    processes.callback(chaos.kill)
    assert chaos.stdout is not None
    states: collections.Counter[str] = collections.Counter()
    hits: collections.Counter[str] = collections.Counter()
    for number in range(ROUNDS):
        assert select.select([chaos.stdout], [], [], BOUND)[0], f"round {number} does not end"
        seen = json.loads(chaos.stdout.readline())
        assert seen["round"] == number
        assert (seen["ended"], seen["frozen"], seen["lied"]) == (True, [], False), seen
        states[seen["state"]] += 1
        hits[" ".join(f"{role}:{signal}" for role, signal in sorted(seen["hit"].items()))] += 1
    print(f"{ROUNDS} rounds; states when hit: {dict(states)}; hits: {dict(hits)}")
    # A test of freezes must hit freezes.
    assert states["freezing"] + states["frozen"] + states["thawing"] >= ROUNDS // 3
