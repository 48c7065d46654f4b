# SPDX-License-Identifier: Apache-2.0
"""Values that are of the right type and cannot be meant: each is refused with its line, and none ends the command."""

from __future__ import annotations

import pytest

from hvring.daemon.config import reading
from hvring.daemon.config.errors import ConfigError

MANY = "1" * 5000  # digits, which Python does not count


@pytest.mark.parametrize(
    ("section", "line", "says"),
    [
        ("health", f'urls = ["http://127.0.0.1:{MANY}/"]', "no port"),
        ("health", f'urls = ["http://127.0.0.{MANY}/"]', "not on this machine"),
        (
            "health",
            'urls = ["http://127.0.0.08/"]',
            "not on this machine",
        ),  # a name, which a server would be asked for
        ("health", f'fresh = ["/a={"1" * 400}"]', "seconds are from"),
        ("health", 'fresh = ["/a=0"]', "seconds are from"),
        ("control", 'socket = ""', "neither auto nor none"),
        ("control", 'socket = "Auto"', "neither auto nor none"),
        ("control", 'group = "4294967295"', "number of no group"),
        ("control", f'group = "{MANY}"', "number of no group"),
        ("shutdown", "drain = [\"''\"]", "names no program"),
        ("kvp", 'set_ip_apply = [""]', "names no program"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_line(section: str, line: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as refused:
        reading.parse(f"[{section}]\n{line}\n".encode(), "hvring.toml")
    (problem,) = refused.value.problems
    assert problem.line == 2
    assert len(str(problem)) < 250
