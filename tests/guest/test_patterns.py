# SPDX-License-Identifier: Apache-2.0
"""How administrators name file systems."""

from __future__ import annotations

import pytest

from hvring.agent.settings import VssSettings
from hvring.agent.verify import SettingsError
from hvring.guest.mountinfo import Mount
from hvring.guest.patterns import matches, mistake

MOUNT = Mount(20, "8:17", "/mnt/a b/[x]", "ext4", "/dev/sdb1", False)


@pytest.mark.parametrize(
    "pattern",
    [
        "/mnt/a b/[x]",  # the very name, although it looks like a glob
        "/mnt/*",
        "*",
        "*/[[]x]",
        "?mnt/*",
        "[/]mnt*",
        "type:ext4",
        "type:ext[34]",
        "type:*",
        "source:/dev/sdb1",
        "source:/dev/sdb*",
    ],
)
def test_a_mount_is_named(pattern: str) -> None:
    assert mistake(pattern) is None
    assert matches(MOUNT, [pattern])
    assert matches(MOUNT, ["/nowhere", pattern])


@pytest.mark.parametrize(
    "pattern",
    [
        "/mnt",
        "/mnt/a b",
        "/MNT/*",
        "type:xfs",
        "type:ext",
        "source:/dev/sdb",
        "source:sdb1",
        "source:/dev/sda*",
    ],
)
def test_another_mount_is_named(pattern: str) -> None:
    assert mistake(pattern) is None
    assert not matches(MOUNT, [pattern])


def test_what_has_a_colon_may_still_be_a_mount_point() -> None:
    odd = Mount(20, "8:17", "/type:ext4", "xfs", "x", False)
    assert matches(odd, ["/type:*"])
    assert not matches(odd, ["type:ext4"])


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("", "no mount point"),
        ("mnt/*", "no mount point"),
        ("fstype:xfs", "neither type:… nor source:…"),
        ("Type:xfs", "neither type:… nor source:…"),
        ("type:", "names no type"),
        ("type: vfat", "names no type"),
        ("type:/dev/sdb1", "names no type"),
        ("source:", "names nothing that can be mounted"),
        ("source: ", "names nothing that can be mounted"),
    ],
)
@pytest.mark.parametrize("knob", ["exclude", "only", "loops"])
def test_what_cannot_be_meant_is_refused_wherever_it_is_said(pattern: str, words: str, knob: str) -> None:
    with pytest.raises(SettingsError, match=words) as refused:
        VssSettings(**{knob: ["/fine", pattern]})
    assert [name for name, _ in refused.value.problems] == [knob]
