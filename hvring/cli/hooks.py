# SPDX-License-Identifier: Apache-2.0
"""``hvring hooks``: which programs are run around a backup, and a trial of them without one."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any, Final

from hvring.agent.settings import VssSettings
from hvring.cli import COMMANDS
from hvring.cli.tables import aligned
from hvring.daemon.config.errors import ConfigError
from hvring.errors import EffectError
from hvring.events import printable
from hvring.guest.hooks.found import STYLES, find

_WELL, _WRONG, _ASKED_WRONGLY = 0, 1, 2
_FLAGS: Final = {"--hooks": "native", "--qemu-ga": "qemu-ga", "--open-vm-tools": "open-vm-tools"}


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The words of this command."""
    parser = commands.add_parser(
        "hooks",
        help=COMMANDS["hooks"],
        description="The hooks of a backup: programs that hold applications still while file systems are frozen. "
        "Exit status: 0 all is well; 1 a file is refused, or a hook failed.",
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    listing = verbs.add_parser("list", help="which there are, in order, and which files are refused and why")
    trying = verbs.add_parser(
        "test",
        help="run them as a backup does, but freeze nothing, and say what each came to",
        description="Runs prepare and freeze of each hook, and then thaw, in the order of a backup, as the user who "
        "asks; no file system is frozen.  Applications do stand still for that moment.",
    )
    trying.add_argument("--hook", metavar="NAME", help="only this one")
    trying.add_argument("--abort", action="store_true", help="end with abort, as after a failure")
    for verb in (listing, trying):
        verb.add_argument("--config", metavar="FILE", help="default: /etc/hvring.toml, if it is there")
        for flag, style in _FLAGS.items():
            verb.add_argument(
                flag,
                metavar="DIR",
                action="append",
                help=f"a directory of this kind ({style}) in place of those",
            )
        verb.add_argument("--json", action="store_true", help="an object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """List or try them."""
    try:
        settings = _settings(args.config)
    except ConfigError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return _WRONG
    given = [
        (os.path.abspath(path), style)
        for flag, style in _FLAGS.items()
        for path in getattr(args, flag.strip("-").replace("-", "_")) or ()
    ]
    directories = given or settings.hook_directories()
    return _list(args, directories) if args.verb == "list" else _test(args, directories, settings)


def _settings(path: str | None) -> VssSettings:
    from hvring.cli.run import configuration_path
    from hvring.daemon.config import reading

    return reading.load(configuration_path(path)).services.vss


def _list(args: argparse.Namespace, directories: Sequence[tuple[str, str]]) -> int:
    found = find(directories)
    if args.json:
        hooks = [
            {"name": h.name, "style": h.style, "path": h.argv[0], "phases": list(STYLES[h.style].words)}
            for h in found.hooks
        ]
        refused = [{"path": one.path, "why": one.why} for one in found.refused]
        print(json.dumps({"hooks": hooks, "refused": refused}, indent=2))
    else:
        rows = [(f"{n}.", h.name, h.style, h.argv[0]) for n, h in enumerate(found.hooks, 1)]
        lines = (
            aligned(rows)
            if rows
            else [f"no hooks in {', '.join(path for path, _ in directories) or 'no directory'}"]
        )
        print("\n".join(map(printable, [*lines, *_refusals(found.refused)])))
    return _WRONG if found.refused else _WELL


def _refusals(refused: Sequence[Any]) -> list[str]:
    return [f"REFUSED, and so is every backup: {one.path}: {one.why}" for one in refused]


def _test(args: argparse.Namespace, directories: Sequence[tuple[str, str]], settings: VssSettings) -> int:
    from hvring.guest.hooks.run import HookRun
    from hvring.guest.hooks.timeouts import Timeouts
    from hvring.pending import settle, steps

    if args.hook is not None and args.hook not in {hook.name for hook in find(directories).hooks}:
        print(
            f"hvring hooks: there is no hook {printable(args.hook)!r} (`hvring hooks list`)", file=sys.stderr
        )
        return _ASKED_WRONGLY
    timeouts = Timeouts(settings.hooks_timeout, settings.hooks_total, settings.hooks_total)
    hooks = HookRun(directories, _mounts(settings), timeouts, only=args.hook)
    problem = None
    try:
        settle(steps(hooks.begin()))
    except EffectError as error:
        problem = error
    word = "abort" if args.abort or problem is not None else "thaw"
    try:
        settle(steps(hooks.end(word)))
    except EffectError as error:
        problem = problem or error
    is_well = problem is None and not any(outcome.why for outcome in hooks.outcomes)
    if args.json:
        print(json.dumps(_facts(hooks, problem), indent=2))
        return _WELL if is_well else _WRONG
    rows = [("hook", "phase", "seconds", "", "last words")]
    for one in hooks.outcomes:
        state = one.why.partition(":")[0] if one.why else "holds" if one.held else "well"
        words = one.why.partition(": ")[2] if one.why else one.words
        rows.append((one.hook, one.phase, f"{one.seconds:.3f}", state, words))
    lines = aligned(rows) if len(rows) > 1 else ["no hook was run"]
    if problem is not None:
        lines += ["", f"a backup would be refused: {problem}", f"what to do: {problem.reason.remedy}"]
    print("\n".join(map(printable, lines)))
    return _WELL if is_well else _WRONG


def _facts(hooks: Any, problem: EffectError | None) -> dict[str, Any]:
    return {
        "backup": hooks.backup,
        "outcomes": [
            {
                "hook": one.hook,
                "phase": one.phase,
                "seconds": one.seconds,
                "held": one.held,
                "why": one.why or None,
                "words": one.words or None,
            }
            for one in hooks.outcomes
        ],
        "refused": [{"path": one.path, "why": one.why} for one in hooks.refused],
        "error": None if problem is None else str(problem),
        "reason": None if problem is None else problem.reason.value,
    }


def _mounts(settings: VssSettings) -> list[str]:
    """What a backup would freeze."""
    from hvring.guest.mounts import read_plan

    try:
        plan = read_plan(exclude=settings.exclude, only=settings.only, loops=settings.loops)
    except EffectError:
        return []
    return [filesystem.target for filesystem in plan.freeze]
