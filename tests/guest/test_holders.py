# SPDX-License-Identifier: Apache-2.0
"""Who has a device, and what is said to be done about it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hvring.guest.holders import Holder, holders, stop_advice

DAEMON = Holder(7, "hv_kvp_daemon", "hv-kvp-daemon.service")
OURS = Holder(8, "hvring", "hvring.service")
BY_HAND = Holder(9, "hv_kvp_daemon", "session-2.scope")


@pytest.mark.parametrize(
    ("found", "advice"),
    [
        ([DAEMON], "`systemctl mask --now hv-kvp-daemon.service`"),
        ([OURS], "`systemctl stop hvring.service`"),
        (
            [DAEMON, DAEMON, OURS],
            "`systemctl mask --now hv-kvp-daemon.service`, `systemctl stop hvring.service`",
        ),
        ([BY_HAND], "stop it"),
    ],
)
def test_daemons_are_masked_since_udev_starts_them_and_hvring_is_stopped(found, advice: str) -> None:
    assert stop_advice(found) == advice


def test_hvring_is_known_however_it_was_started(tmp_path: Path) -> None:
    """The process is real; what it runs only looks like hvring."""
    (tmp_path / "hvring.py").write_text("import sys; print(flush=True); sys.stdin.read()")
    (tmp_path / "hvring").write_text("import sys; print(flush=True); sys.stdin.read()")
    file = tmp_path / "node"
    file.touch()
    (tmp_path / "other").write_text("import sys; print(flush=True); sys.stdin.read()")
    for words, is_ours in (
        (["-m", "hvring", "run"], True),
        (["-W", "error", "-B", str(tmp_path / "hvring")], True),
        ([str(tmp_path / "other"), "hvring"], False),
        (["-c", "import sys; print(flush=True); sys.stdin.read()", "-m", "hvring"], False),
    ):
        with (
            open(file, encoding="utf-8") as held,
            subprocess.Popen(
                [sys.executable, *words],
                cwd=tmp_path,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=[held.fileno()],
            ) as process,
        ):
            process.stdout.readline()
            found = {one.pid: one for one in holders({str(file)})}
            assert found[process.pid].is_ours is is_ours
            process.stdin.close()
