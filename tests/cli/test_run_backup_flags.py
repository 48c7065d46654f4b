# SPDX-License-Identifier: Apache-2.0
"""`hvring run --backup-flags`: what HOT_BACKUP answers, as a host sees it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hvring.host.testing import running_host
from hvring.ic.vss import NO_AUTO_RECOVERY


@pytest.mark.parametrize(
    ("words", "told"),
    [([], NO_AUTO_RECOVERY), (["--backup-flags", "0x11"], 17), (["--backup-flags", "host"], 0)],
)
def test_the_host_is_told_the_flags_of_the_settings(
    tmp_path: Path, start: Callable[..., Any], words: list[str], told: int
) -> None:
    with running_host(tmp_path / "host.sock", ["vss"]) as host:
        start("run", "vss", "--virtual", host.path, *words)
        host.do(host.wait_ready("vss"))
        # The host asks with flags of 0, so that 0 is what comes back untouched.
        assert host.do(host.vss.check()) == told
        assert host.violations == []
