# SPDX-License-Identifier: Apache-2.0
"""docs/freeze-plan.schema.json is what `hvring freeze --plan --json` prints."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hvring.agent.settings import KvpSettings, Settings, VssSettings
from hvring.daemon.planning import answer, question
from hvring.guest import hazards
from hvring.guest.mounts import Filesystem, Mount, Plan, Skipped
from hvring.guest.preflight import preflight

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "docs" / "freeze-plan.schema.json").read_text())
TYPES = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool, "null": type(None)}
WORDS = {
    "$schema",
    "title",
    "type",
    "properties",
    "required",
    "additionalProperties",
    "items",
    "enum",
    "description",
}


def problems(found: Any, schema: dict[str, Any], where: str = "plan") -> Iterator[str]:
    """As much of JSON Schema as the file uses."""
    assert schema.keys() <= WORDS, f"{where}: the test does not know {schema.keys() - WORDS}"
    if "enum" in schema and found not in schema["enum"]:
        yield f"{where}: {found!r}"
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(type(found) is TYPES[kind] for kind in kinds):
        yield f"{where}: {found!r} is none of {kinds}"
    elif isinstance(found, list):
        for number, one in enumerate(found):
            yield from problems(one, schema["items"], f"{where}[{number}]")
    elif isinstance(found, dict):
        known = schema["properties"]
        yield from (f"{where}: lacks {name}" for name in schema["required"] if name not in found)
        if not schema["additionalProperties"]:
            yield from (f"{where}: has {name}" for name in found if name not in known)
        for name in found.keys() & known.keys():
            yield from problems(found[name], known[name], f"{where}.{name}")


def test_what_the_command_prints_is_as_the_schema_says() -> None:
    words = ("freeze", "--plan", "--json", "--only", "/nowhere", "--exclude", "type:vfat")
    done = subprocess.run(
        [sys.executable, "-m", "hvring", *words], capture_output=True, text=True, timeout=120, check=False
    )
    found = json.loads(done.stdout)
    assert list(problems(found, SCHEMA)) == []
    assert found["rules"] == {
        "only": ["/nowhere"],
        "exclude": ["type:vfat"],
        "loops": [],
        "only_named": False,
    }
    assert "vss.only has '/nowhere', which names nothing that is mounted now" in found["notes"]


def test_so_is_a_plan_with_images_and_what_goes_wrong(tmp_path: Path) -> None:
    for number, image in (("7:0", "/var/image"), ("8:1", "")):
        place = tmp_path / "devices" / number
        (place / "device").mkdir(parents=True)
        if image:
            (place / "loop").mkdir()
            (place / "loop" / "backing_file").write_text(f"{image}\n")
        (tmp_path / "dev" / "block").mkdir(parents=True, exist_ok=True)
        (tmp_path / "dev" / "block" / number).symlink_to(place)
    image, var, odd, tank = (
        Filesystem((Mount(n, device, target, fstype, "/dev/x", False),))
        for n, (device, target, fstype) in enumerate(
            (
                ("7:0", "/image", "ext4"),
                ("8:1", "/var", "ext4"),
                ("8:9", "/odd", "ext4"),
                ("0:9", "/tank", "zfs"),
            )
        )
    )
    plan = Plan((image, var, odd), (Skipped(tank, "not on a block device"),), ("a note",))
    found = preflight(plan, [("the pools", "/var/pools")], proc=str(tmp_path), sysfs=str(tmp_path))
    rules = {"only": None, "exclude": [], "loops": [], "only_named": True}
    hooks = [{"name": "10-a", "style": "native", "path": "/a/10-a", "refused": None}]
    more = {"by": None, "obstacle": None, "rules": rules, "hooks": hooks}
    assert list(problems({**found, **more}, SCHEMA)) == []
    assert [each["lies_on"] for each in found["order"]] == [["/var"], [], []]
    at_var = {"name": "8:1", "controller": None, "target": None, "lun": None}
    assert [each["disks"] for each in found["order"]] == [[at_var], [at_var], None]
    assert {hazard["kind"] for hazard in found["hazards"]} >= {"loop", "zfs", "own_files"}  # and a journal


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"notes": None}, "plan.notes"),
        ({"rules": {}}, "plan.rules: lacks exclude"),
        ({"order": [{"target": "/"}]}, "plan.order[0]: lacks device"),
        (
            {"hazards": [{"kind": "new", "target": "", "what": "", "remedy": ""}]},
            "plan.hazards[0].kind: 'new'",
        ),
    ],
)
def test_the_schema_refuses_another(change: dict[str, Any], problem: str) -> None:
    settings = Settings(vss=VssSettings(only=["/nowhere"]), kvp=KvpSettings("/nowhere"))
    found = {**answer(question(settings)), "by": None}
    assert list(problems(found, SCHEMA)) == []
    assert any(each.startswith(problem) for each in problems({**found, **change}, SCHEMA))


def test_every_kind_of_hazard_is_in_the_schema() -> None:
    source = Path(hazards.__file__).read_text(encoding="utf-8")
    kinds = set(re.findall(r'Hazard\(\s*"(\w+)"', source))
    assert kinds == set(SCHEMA["properties"]["hazards"]["items"]["properties"]["kind"]["enum"])
