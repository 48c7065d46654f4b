# SPDX-License-Identifier: Apache-2.0
"""In the middle layer: boot the guest, run the plan's scenarios against it, leave results.json."""

from __future__ import annotations

import importlib
import inspect
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from vm import Lab, SkipError

_OUT = Path("/run/out/results.json")


def checks_of(module: ModuleType) -> list[Callable[[Lab], None]]:
    """Functions that the module itself defines with the one parameter ``lab``, in its order."""
    own = [f for f in vars(module).values() if inspect.isfunction(f) and f.__module__ == module.__name__]
    return [
        f for f in own if not f.__name__.startswith("_") and list(inspect.signature(f).parameters) == ["lab"]
    ]


def one(lab: Lab, scenario: str, check: Callable[[Lab], None]) -> dict[str, Any]:
    """Run a check; its row of the table."""
    name = check.__name__
    lab.say("==", scenario, "/", name)
    start, status, notes = time.monotonic(), "ok", []
    try:
        check(lab)
    except SkipError as error:
        status, notes = "skipped", [str(error)]
    except Exception as error:
        traceback.print_exc(file=sys.stdout)
        status, notes = "FAILED", [f"{type(error).__name__}: {error}"]
    if lab.failed:
        status, notes = "FAILED", lab.failed + notes
        lab.failed = []
    seconds = round(time.monotonic() - start, 2)
    lab.say("CHECK", status, f"{seconds:.2f} s", scenario, "/", name)
    return {"scenario": scenario, "check": name, "status": status, "seconds": seconds, "notes": notes}


def run(plan: dict[str, Any], record: Callable[[dict[str, Any]], None]) -> None:
    """Boot, run every check of every scenario, switch off."""

    def the_guest_boots(lab: Lab) -> None:
        lab.start()

    lab = Lab(plan["guest"], plan["kernel"])
    boot = one(lab, plan["scenarios"][0], the_guest_boots)
    record(boot)
    if boot["status"] == "ok":
        for scenario in plan["scenarios"]:
            for check in checks_of(importlib.import_module(scenario)):
                record(one(lab, scenario, check))
    lab.stop()


def main() -> None:
    rows: list[dict[str, Any]] = []

    def record(row: dict[str, Any]) -> None:
        rows.append(row)
        _OUT.write_text(json.dumps(rows))

    sys.path.insert(0, "/lab/t")
    plan = json.loads(Path("/lab/plan.json").read_text())
    run(plan, record)
    record({"end": True})  # without it the run broke off


if __name__ == "__main__":
    main()
