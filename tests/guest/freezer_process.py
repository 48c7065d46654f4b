# SPDX-License-Identifier: Apache-2.0
"""A service that freezes, as a process of its own: takes words on stdin, answers JSON lines on stdout.

Started by test_freezer.py inside a private mount namespace. :func:`restricted` is the only place in the
tests where a SystemFreezer gets anything to freeze, and it ends the process before it could be a real mount.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from typing import Any

from hvring.errors import EffectError
from hvring.guest.freezer import SystemFreezer
from hvring.guest.mounts import Filesystem, Plan, parse_mountinfo, read_plan


def restricted(targets: list[str], below: str, outside: str, **options: Any) -> SystemFreezer:
    """A freezer of exactly these mounts of the test, in this order."""
    if os.readlink("/proc/self/ns/mnt") == outside:
        sys.exit("not in a private mount namespace")
    with open("/proc/self/mountinfo", encoding="utf-8") as lines:
        mounts = list(parse_mountinfo(lines))
    filesystems = []
    for target in targets:
        (mount,) = [m for m in mounts if m.target == target]
        devices = [m.device for m in mounts]
        if (
            not target.startswith(below + "/")
            or not (mount.source.startswith("/dev/loop") or mount.fstype == "tmpfs")
            or devices.count(mount.device) != 1
            or os.stat(target).st_dev in (os.stat("/").st_dev, os.stat(below).st_dev)
        ):
            sys.exit(f"not a mount of the test: {mount}")
        filesystems.append(Filesystem((mount,)))
    return SystemFreezer(lambda: Plan(tuple(filesystems), ()), **options)


def main() -> None:
    settings = json.loads(sys.argv[1])
    log = settings.pop("log", None)
    if log is not None:
        logging.basicConfig(filename=log, level=logging.DEBUG)
    freezer = restricted(**settings)
    for line in sys.stdin:
        answer: object = None
        try:
            match line.strip():
                case "freeze":
                    freezer.freeze()
                case "thaw":
                    freezer.thaw()
                case "frozen":
                    answer = freezer.frozen
                case "obstacle":
                    answer = freezer.obstacle()
                case "children":
                    with open(f"/proc/self/task/{os.getpid()}/children", encoding="utf-8") as children:
                        answer = [int(pid) for pid in children.read().split()]
                case "rules":
                    plan = read_plan(only=settings["targets"])
                    answer = [[skipped.filesystem.target, skipped.why] for skipped in plan.skipped]
                case "rules with loops":
                    plan = read_plan(only=settings["targets"], loops=settings["targets"])
                    answer = [filesystem.target for filesystem in plan.freeze]
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
