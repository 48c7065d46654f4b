# SPDX-License-Identifier: Apache-2.0
"""Hooks around real freezes: what each is told comes before the first file system, or after the last one."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from hook_scripts import HOLDS, Scripts

pytestmark = pytest.mark.root


@pytest.fixture
def scripts(tmp_path: Path) -> Scripts:
    (tmp_path / "hooks").mkdir()
    return Scripts(tmp_path / "hooks")


def test_applications_are_held_before_the_freeze_and_told_after_the_thaw(
    namespace: Any, start: Any, write: Any, scripts: Scripts
) -> None:
    mount = namespace.mount_image("a")
    # Each writes to what is frozen: told too late or too early, it would wait for the thaw.
    wrote = f"echo $1 >>{mount}/told && sync {mount}/told && say wrote"
    scripts.add("10-one", prepare=wrote, freeze=wrote, thaw=wrote)
    scripts.add("20-held", freeze=f"{wrote}; {HOLDS}; {wrote}")
    service = start([mount], hooks=str(scripts.directory))
    for _ in range(2):
        scripts.log.write_text("")
        assert service.ask("freeze") is None
        writer = write(mount)
        writer.wait_until_blocked()
        assert scripts.lines().count("10-one wrote") == 2
        assert service.ask("thaw") is None
        assert writer.has_written()
        scripts.check_ends("thaw")
        assert scripts.lines().count("10-one wrote") == 3
        assert scripts.lines().count("20-held wrote") == 2


@pytest.mark.parametrize("who", ["agent", "agent and then guardian"])
def test_hooks_are_aborted_after_the_thaw_when_the_agent_is_killed(
    namespace: Any, start: Any, write: Any, scripts: Scripts, who: str
) -> None:
    mount = namespace.mount_image("a")
    scripts.add("10-one", abort=f"echo x >>{mount}/told && say wrote")
    scripts.add("20-held", freeze=HOLDS)
    service = start([mount], hooks=str(scripts.directory))
    assert service.ask("freeze") is None
    writer = write(mount)
    writer.wait_until_blocked()
    guardian = [pid for pid in service.children() if is_guardian(pid)]
    service.kill()
    if who != "agent":
        os.kill(guardian[0], signal.SIGKILL)
    assert writer.has_written()
    scripts.wait_for("10-one wrote")
    scripts.wait_for_ends()
    scripts.check_ends("abort")


def test_hooks_are_aborted_when_the_guardian_is_killed(
    namespace: Any, start: Any, write: Any, scripts: Scripts
) -> None:
    mount = namespace.mount_image("a")
    scripts.add("10-one")
    scripts.add("20-held", freeze=HOLDS)
    service = start([mount], hooks=str(scripts.directory))
    assert service.ask("freeze") is None
    (guardian,) = [pid for pid in service.children() if is_guardian(pid)]
    os.kill(guardian, signal.SIGKILL)
    assert service.ask("lost") == "the guardian was killed"
    assert "the guardian was killed" in service.ask("thaw")
    scripts.check_ends("abort")
    assert write(mount).has_written()


def is_guardian(pid: int) -> bool:
    return b"guardian.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
