# SPDX-License-Identifier: Apache-2.0
"""A service that freezes, as a process of its own: takes words on stdin, answers JSON lines on stdout.

Started by test_freezer.py inside a private mount namespace. :func:`restricted` is the only place in the
tests where a SystemFreezer gets anything to freeze, and it ends the process before it could be a real mount.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

from hvring.errors import EffectError
from hvring.guest.freezer import SystemFreezer
from hvring.guest.hooks.freezer import HookedFreezer
from hvring.guest.hooks.timeouts import Timeouts
from hvring.guest.launch import PLAIN
from hvring.guest.mounts import Filesystem, Mount, Plan, parse_mountinfo, read_plan
from hvring.pending import Pending, settle


def restricted(
    targets: list[str],
    below: str,
    outside: str,
    rules: dict[str, Any] | None = None,
    behind: Sequence[str] = (),
    **options: Any,
) -> SystemFreezer:
    """A freezer of exactly these mounts of the test, in this order; or by these rules, and of nothing else.

    ``behind``: paths that are to be opened, too, as if there were disks."""
    if os.readlink("/proc/self/ns/mnt") == outside:
        sys.exit("not in a private mount namespace")
    imagined = tuple(
        Filesystem((Mount(1, f"8:{n}", path, "ext4", "/dev/sdz", False),)) for n, path in enumerate(behind)
    )

    def plan() -> Plan:
        made = read_plan(**rules) if rules is not None else Plan(tuple(map(find, targets)), ())
        for filesystem in made.freeze:
            if not is_of_the_test(filesystem, below):
                sys.exit(f"not a mount of the test: {filesystem}")
        return Plan((*imagined, *made.freeze), made.skipped, made.notes)

    return SystemFreezer(plan, blocking=False, **options)


def find(target: str) -> Filesystem:
    with open("/proc/self/mountinfo", encoding="utf-8", newline="\n") as lines:
        mounts = list(parse_mountinfo(lines))
    (mount,) = [m for m in mounts if m.target == target]
    if [m.device for m in mounts].count(mount.device) != 1:
        sys.exit(f"mounted twice: {mount}")
    return Filesystem((mount,))


def is_of_the_test(filesystem: Filesystem, below: str) -> bool:
    return all(
        mount.target.startswith(below + "/")
        and (mount.source.startswith("/dev/loop") or mount.fstype in ("tmpfs", "overlay"))
        for mount in filesystem.mounts
    )


def wait(work: Pending[None]) -> None:
    select.select([work.descriptor], [], [], max(0.0, work.at - time.monotonic()))


def wait_for(descriptor: int) -> None:
    assert select.select([descriptor], [], [], 30)[0]


def main() -> None:
    settings = json.loads(sys.argv[1])
    log = settings.pop("log", None)
    if log is not None:
        logging.basicConfig(filename=log, level=logging.DEBUG)
    hooks = settings.pop("hooks", None)
    freezer: Any = restricted(**settings)
    if hooks is not None:
        ways = [PLAIN]
        freezer = HookedFreezer(
            freezer, [(hooks, "native")], Timeouts(60, 600, 600), ways=lambda: ways, blocking=False
        )
    work: Pending[None] | None = None
    for line in sys.stdin:
        answer: object = None
        try:
            match line.strip():
                case "freeze":
                    settle(freezer.freeze())
                case "thaw":
                    settle(freezer.thaw())
                case "begin":
                    work = freezer.freeze()
                case "go on":
                    # As often as it takes until something is frozen, or the freeze is over.
                    while isinstance(work, Pending) and not freezer.frozen:
                        wait(work)
                        work = work.resume()
                    answer = freezer.frozen
                case "lost":
                    while (answer := freezer.lost()) is None:
                        wait_for(freezer.watch())
                case "summary":
                    answer = freezer.summary
                case "weakness":
                    answer = freezer.weakness
                case "frozen":
                    answer = freezer.frozen
                case "obstacle":
                    answer = freezer.obstacle()
                case "children":
                    with open(f"/proc/self/task/{os.getpid()}/children", encoding="utf-8") as children:
                        answer = [int(pid) for pid in children.read().split()]
                case "plan":
                    answer = [filesystem.target for filesystem in freezer.plan().freeze]
                case "skipped":
                    answer = [[skipped.filesystem.target, skipped.why] for skipped in freezer.plan().skipped]
                case "fork":
                    answer = os.fork()
                    if answer == 0:
                        while signal.pause() is None:
                            pass
        except EffectError as problem:
            answer = f"EffectError: {problem}"
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
