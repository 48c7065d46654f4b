# SPDX-License-Identifier: Apache-2.0
"""Freezes the test's mounts as a unit of a real manager, tells so, and sleeps until it is killed."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

from freezer_process import restricted

from hvring.pending import settle


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    told = Path(settings.pop("told"))  # not on a mount that is frozen
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    freezer = restricted(**settings)
    settle(freezer.freeze())
    # One descriptor that was there before, one write: nothing here may wait for what is frozen.
    told.write_text(json.dumps(freezer.weakness), encoding="utf-8")
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
