# SPDX-License-Identifier: Apache-2.0
"""An agent with hooks and nothing to freeze, as a process of its own that can be killed: words on its input."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from hook_scripts import TIMEOUT, Scripts, Still

from hvring.guest.hooks.freezer import HookedFreezer
from hvring.guest.hooks.timeouts import Timeouts
from hvring.guest.launch import PLAIN


class _There(Scripts):
    def __init__(self, folder: Path) -> None:
        self.folder, self.log, self.directory = folder, folder / "log", folder / "hooks.d"


class _Guarded(Still):
    """``family``: a descriptor that ends when nobody holds the freeze."""

    family = -1
    freezer: HookedFreezer

    def freeze(self, named: object = None) -> None:
        run = self.freezer._run
        assert run is not None
        if self.family >= 0:
            run.guard(self.family)
        super().freeze(named)


def main() -> None:
    scripts = _There(Path(json.loads(sys.argv[1])))
    inner = _Guarded(scripts)
    inner.family = int(sys.argv[2]) if len(sys.argv) > 2 else -1
    timeouts = Timeouts(TIMEOUT, 10 * TIMEOUT, 10 * TIMEOUT)
    directories = [(str(scripts.directory), "native")]
    inner.freezer = freezer = HookedFreezer(inner, directories, timeouts, answer=600, ways=lambda: [PLAIN])
    for line in sys.stdin:
        if line == "freeze\n":
            freezer.freeze()
            print("frozen", flush=True)
        elif line == "thaw\n":
            freezer.thaw()
            print("thawed", flush=True)


if __name__ == "__main__":
    main()
