# SPDX-License-Identifier: Apache-2.0
"""`hvring freeze --plan`: what a backup by these settings would do, found by a process of its own.

It opens mounts and looks through all of /proc: neither is for the loop of an agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import stat
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from hvring.agent.settings import Settings
from hvring.daemon.control.protocol import ControlError

if TYPE_CHECKING:
    from hvring.guest.mounts import Plan

TIMEOUT: Final = 120.0  # seconds for all of it
_LARGEST: Final = 4 * 1024 * 1024
_ROOT: Final = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_PROGRAM: Final = (
    "import sys; sys.path.insert(0, sys.argv[1]); from hvring.daemon.planning import main; main()"
)


def question(settings: Settings, own_files: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
    """What of the settings matters; ``own_files``: what else the agent writes, as (what it is, path)."""
    vss = settings.vss
    return {
        "exclude": list(vss.exclude),
        "only": None if vss.only is None else list(vss.only),
        "loops": list(vss.loops),
        "only_named": vss.only_named,
        "open_timeout": vss.open_timeout,
        "real": settings.real,
        "hooks": vss.hook_directories(),
        "own_files": [
            ("the pools", os.fspath(settings.kvp.pool_directory)),
            *(("a directory for copies", os.fspath(path)) for path in settings.fcopy.allow),
            *own_files,
        ],
    }


def answer(asked: Mapping[str, Any]) -> dict[str, Any]:
    """As of :func:`hvring.guest.preflight.preflight`, with the ``rules`` by which it was made, the ``hooks``,
    and ``obstacle``: why no freeze can work, or None.  Raises EffectError."""
    from hvring.guest.freezer import SystemFreezer
    from hvring.guest.mounts import read_plan
    from hvring.guest.preflight import preflight

    plan = read_plan(exclude=asked["exclude"], only=asked["only"], loops=asked["loops"])
    own = [(str(what), str(path)) for what, path in asked["own_files"]]
    found = preflight(plan, own, open_timeout=asked["open_timeout"])
    rules = {name: asked[name] for name in ("exclude", "only", "loops", "only_named")}
    found["notes"] += unmatched(plan, rules)
    hooks, refused = _hooks(asked.get("hooks", ()))
    obstacle = SystemFreezer().obstacle() if asked["real"] else None
    return {
        **found,
        "hooks": hooks,
        "rules": rules,
        "obstacle": obstacle or (refused if asked["real"] else None),
    }


def _hooks(directories: Sequence[Sequence[str]]) -> tuple[list[dict[str, Any]], str | None]:
    """In the order in which they would hold, those that are refused behind them; why no backup is made, or None."""
    from hvring.guest.hooks.found import find

    found = find([(str(path), str(style)) for path, style in directories])
    hooks: list[dict[str, Any]] = [
        {"name": hook.name, "style": hook.style, "path": hook.argv[0], "refused": None}
        for hook in found.hooks
    ]
    hooks += [
        {"name": os.path.basename(one.path), "style": None, "path": one.path, "refused": one.why}
        for one in found.refused
    ]
    why = [f"the hook {one.path} is not run: {one.why}" for one in found.refused]
    return hooks, why[0] if why else None


def unmatched(plan: Plan, rules: Mapping[str, Any]) -> list[str]:
    """Of patterns that name nothing that is mounted now: they may be misspelt."""
    from hvring.guest.patterns import matches

    filesystems = [*plan.freeze, *(one.filesystem for one in plan.skipped)]
    mounts = [mount for filesystem in filesystems for mount in filesystem.mounts]
    return [
        f"vss.{name} has {pattern!r}, which names nothing that is mounted now"
        for name in ("exclude", "only", "loops")
        for pattern in rules[name] or ()
        if not any(matches(mount, [pattern]) for mount in mounts)
    ]


def main() -> None:
    """Of the process: a question in its arguments, the answer on its output."""
    signal.alarm(int(TIMEOUT) + 10)
    try:
        found = answer(json.loads(sys.argv[2]))
    except Exception as error:
        found = {"error": str(error) or repr(error)}
    print(json.dumps(found))


def standard_files() -> list[tuple[str, str]]:
    """The files to which this process's output goes."""
    found = []
    for descriptor, what in ((1, "the log"), (2, "what this process complains of")):
        try:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                found.append((what, os.readlink(f"/proc/self/fd/{descriptor}")))
        except OSError:  # it is closed
            continue
    return found


class Planner:
    """Asks such a process, one at a time, on the running loop."""

    def __init__(self) -> None:
        self._pid: int | None = None
        self._is_busy = False

    async def ask(self, settings: Settings, own_files: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
        """``own_files`` as of :func:`question`.  Raises ControlError."""
        if self._is_busy or not self._has_ended():
            raise ControlError("somebody else asked for the plan, and it is not made yet", "busy")
        self._is_busy = True
        try:
            async with asyncio.timeout(TIMEOUT):
                found = json.loads(await self._run(question(settings, own_files)))
        except TimeoutError:
            raise ControlError(f"the plan was not made within {TIMEOUT:g} s: some mount hangs") from None
        except ValueError:
            raise ControlError("the process that makes the plan ended early") from None
        except OSError as error:
            raise ControlError(f"no process can be started to make the plan: {error.strerror}") from error
        finally:
            self._is_busy = False
            self._end()
        if "error" in found:
            raise ControlError(str(found["error"]))
        return dict(found)

    async def _run(self, asked: Mapping[str, Any]) -> bytes:
        loop = asyncio.get_running_loop()
        ours, theirs = os.pipe()
        try:
            os.set_blocking(ours, False)
            arguments = (sys.executable, "-I", "-S", "-c", _PROGRAM, _ROOT, json.dumps(asked))
            try:
                self._pid = os.posix_spawn(
                    sys.executable,
                    arguments,
                    os.environ,
                    file_actions=[
                        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                        (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
                        (os.POSIX_SPAWN_DUP2, theirs, 1),
                    ],
                    setsigmask=(),
                )
            finally:
                os.close(theirs)
            said = bytearray()
            while len(said) <= _LARGEST:
                await _readable(loop, ours)
                data = os.read(ours, 65536)
                if not data:
                    await _ended(loop, self._pid)
                    break
                said += data
            return bytes(said)
        finally:
            os.close(ours)

    def _end(self) -> None:
        if self._pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            self._has_ended()

    def _has_ended(self) -> bool:
        """Reaps it."""
        if self._pid is not None:
            try:
                if os.waitpid(self._pid, os.WNOHANG)[0] == 0:
                    return False
            except ChildProcessError:
                pass
            self._pid = None
        return True


async def _readable(loop: asyncio.AbstractEventLoop, descriptor: int) -> None:
    ready = loop.create_future()
    loop.add_reader(descriptor, _wake, ready)
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)


async def _ended(loop: asyncio.AbstractEventLoop, pid: int) -> None:
    """Until that child is to be reaped."""
    process = os.pidfd_open(pid)
    try:
        await _readable(loop, process)
    finally:
        os.close(process)


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)
