# SPDX-License-Identifier: Apache-2.0
"""Hooks around a freeze: their order, what each may do wrong, and that each that started has exactly one end."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hook_scripts import (
    EXITS,
    FLOODS,
    HANGS,
    HOLDS,
    HOLDS_AND_DIES,
    IGNORES,
    KILLED,
    LEAVES_A_CHILD,
    TIMEOUT,
    Scripts,
    Still,
    processes_of,
)

from hvring.errors import EffectError
from hvring.guest.hooks.freezer import HookedFreezer
from hvring.guest.hooks.timeouts import Timeouts
from hvring.guest.launch import PLAIN
from hvring.pending import Pending, settle
from hvring.reasons import Reason

ROOT = Path(__file__).parents[2]


@pytest.fixture
def scripts(tmp_path: Path) -> Iterator[Scripts]:
    made = Scripts(tmp_path)
    yield made
    made.end_children()  # those that were left behind on purpose
    until = time.monotonic() + TIMEOUT
    while left := list(processes_of(made)):
        assert time.monotonic() < until, left
        time.sleep(0.01)


def hooked(scripts: Scripts, inner: Any = None, *, seconds: float = TIMEOUT, **more: Any) -> HookedFreezer:
    timeouts = Timeouts(seconds, 10 * TIMEOUT, 10 * TIMEOUT)
    directories = more.pop("directories", [(str(scripts.directory), "native")])
    return HookedFreezer(
        inner or Still(scripts), directories, timeouts, answer=10 * TIMEOUT, ways=lambda: [PLAIN], **more
    )


def test_hooks_are_run_in_order_and_told_in_reverse(scripts: Scripts) -> None:
    scripts.add("10-first")
    scripts.add("20-second", freeze=HOLDS)
    scripts.add("30-third")
    freezer = hooked(scripts)
    freezer.freeze()
    assert freezer.frozen
    assert freezer.lost() is None
    assert freezer.summary == "all; hooks: 10-first, 20-second, 30-third"
    freezer.freeze()  # a second one changes nothing
    freezer.thaw()
    assert not freezer.frozen
    freezer.thaw()
    assert scripts.lines() == [
        *("10-first prepare", "20-second prepare", "30-third prepare"),
        *("10-first freeze", "20-second freeze", "30-third freeze"),
        *("- frozen", "- thawed"),
        *("30-third thaw", "20-second thaw", "10-first thaw"),
    ]
    assert freezer.complaints() == []


def test_without_hooks_it_is_the_freezer_within(scripts: Scripts) -> None:
    freezer = hooked(scripts, directories=[(str(scripts.folder / "nowhere"), "native")])
    freezer.freeze()
    assert freezer.summary == "all"
    freezer.thaw()
    assert scripts.lines() == ["- frozen", "- thawed"]


def test_a_hook_knows_the_backup_and_nothing_of_the_service_manager(
    scripts: Scripts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/nobody")
    monkeypatch.setenv("WATCHDOG_USEC", "1")
    scripts.add(
        "one", prepare=f"env >{scripts.folder}/env; pwd >{scripts.folder}/cwd; umask >>{scripts.folder}/cwd"
    )
    freezer = hooked(scripts)
    freezer.freeze()
    freezer.thaw()
    found = dict(
        line.split("=", 1) for line in (scripts.folder / "env").read_text().splitlines() if "=" in line
    )
    assert (scripts.folder / "cwd").read_text().split() == ["/", "0022"]
    assert found["HVRING_PHASE"] == "prepare"
    assert found["HVRING_HOOK"] == "one"
    assert len(found["HVRING_BACKUP_ID"]) == 16
    assert float(found["HVRING_TIMEOUT"]) == TIMEOUT
    assert "HVRING_MOUNTS" in found
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "PYTHONPATH"} & set(found)


@pytest.mark.parametrize("phase", ["prepare", "freeze"])
@pytest.mark.parametrize(
    ("does", "says", "reason"),
    [
        (EXITS, "exit status 3: no database", Reason.HOOK_FAILED),
        (HANGS, "did not end within 5 s: waiting", Reason.HOOK_TIMEOUT),
        (IGNORES, "did not end within 5 s: deaf", Reason.HOOK_TIMEOUT),
        (KILLED, "killed by SIGKILL", Reason.HOOK_FAILED),
        (FLOODS + "; " + EXITS, "exit status 3: no database", Reason.HOOK_FAILED),
        (LEAVES_A_CHILD + "; exit 4", "exit status 4: forked", Reason.HOOK_FAILED),
    ],
    ids=["exits", "hangs", "ignores SIGTERM", "killed", "floods", "leaves a child"],
)
def test_a_hook_that_fails_is_named_and_all_that_began_have_their_end(
    scripts: Scripts, phase: str, does: str, says: str, reason: Reason
) -> None:
    scripts.add("10-holds", freeze=HOLDS)
    scripts.add("20-bad", **{phase: does})
    scripts.add("30-never")
    freezer = hooked(scripts, seconds=5.0 if "did not end" in says else TIMEOUT)
    with pytest.raises(EffectError, match=f"^the hook 20-bad at {phase}: {says}$") as failed:
        freezer.freeze()
    assert failed.value.reason is reason
    assert not freezer.frozen
    assert "- frozen" not in scripts.lines()
    assert ("30-never freeze" in scripts.lines()) is False
    scripts.check_ends("abort")
    assert freezer.complaints() == []
    scripts.add("20-bad")
    freezer.freeze()  # and the next one is as any other
    freezer.thaw()


def test_a_hook_that_says_it_holds_and_ends_holds_nothing(scripts: Scripts) -> None:
    scripts.add("10-holds", freeze=HOLDS)
    scripts.add("20-bad", freeze="echo held")
    freezer = hooked(scripts)
    # Where it is noticed depends on who is faster: at its freeze, at that of another one, or when all is frozen.
    with pytest.raises(
        EffectError, match=r"20-bad (at freeze: said that it holds, and ended|ended while it held)"
    ):
        freezer.freeze()
        assert select.select([freezer.watch()], [], [], TIMEOUT)[0]
        assert "20-bad" in str(freezer.lost())
        freezer.thaw()
    scripts.check_ends("abort")


@pytest.mark.parametrize("does", [FLOODS, LEAVES_A_CHILD], ids=["floods", "leaves a child"])
def test_what_a_hook_says_or_leaves_behind_holds_nobody_up(scripts: Scripts, does: str) -> None:
    scripts.add("10-one", prepare=does, freeze=does, thaw=does)
    freezer = hooked(scripts)
    freezer.freeze()
    freezer.thaw()
    assert freezer.complaints() == []
    scripts.check_ends("thaw")


def test_a_held_hook_that_floods_hears_its_end(scripts: Scripts) -> None:
    scripts.add("10-one", freeze=f"echo held; {FLOODS}; read word; say $word")
    freezer = hooked(scripts)
    freezer.freeze()
    freezer.thaw()
    assert freezer.complaints() == []
    scripts.check_ends("thaw")


@pytest.mark.parametrize(
    ("does", "says"),
    [
        (EXITS, "exit status 3: no database"),
        (HANGS, "did not end within 5 s: waiting"),
        (IGNORES, "did not end within 5 s: deaf"),
        (KILLED, "killed by SIGKILL"),
    ],
    ids=["exits", "hangs", "ignores SIGTERM", "killed"],
)
@pytest.mark.parametrize("is_held", [False, True])
def test_a_hook_that_fails_at_its_end_stops_nothing_and_is_told(
    scripts: Scripts, does: str, says: str, is_held: bool
) -> None:
    scripts.add("10-good", freeze=HOLDS)
    scripts.add("20-bad", **({"freeze": f"{HOLDS}; {does}"} if is_held else {"thaw": does}))
    scripts.add("30-good")
    freezer = hooked(scripts, seconds=5.0 if "did not end" in says else TIMEOUT)
    freezer.freeze()
    freezer.thaw()
    ((what, error),) = freezer.complaints()
    assert what == "hook 20-bad"
    assert str(error) == f"the hook 20-bad at thaw: {says}"
    scripts.check_ends("thaw")


def test_a_freeze_that_fails_aborts_all(scripts: Scripts) -> None:
    scripts.add("10-holds", freeze=HOLDS)
    scripts.add("20-one")
    freezer = hooked(scripts, Still(scripts, "no disk"))
    with pytest.raises(EffectError, match="no disk"):
        freezer.freeze()
    assert scripts.lines()[-2:] == ["20-one abort", "10-holds abort"]
    scripts.check_ends("abort")


def test_a_freeze_that_did_not_hold_is_aborted_after_the_thaw(scripts: Scripts) -> None:
    scripts.add("10-holds", freeze=HOLDS)
    inner = Still(scripts)
    freezer = hooked(scripts, inner)
    freezer.freeze()
    inner.why = "it was thawed"
    assert freezer.lost() == "it was thawed"

    def thaw() -> None:
        inner.frozen = False
        raise EffectError("thawed too early", reason=Reason.FREEZE_LOST)

    inner.thaw = thaw  # type: ignore[method-assign]
    with pytest.raises(EffectError, match="too early"):
        freezer.thaw()
    scripts.check_ends("abort")


def test_hooks_hold_until_all_is_known_to_be_thawed(scripts: Scripts) -> None:
    scripts.add("10-holds", freeze=HOLDS)
    inner = Still(scripts)
    freezer = hooked(scripts, inner)
    freezer.freeze()
    thaw = inner.thaw
    calls = []

    def stuck() -> None:
        calls.append(1)
        raise EffectError("does not thaw", reason=Reason.THAW_FAILED)

    inner.thaw = stuck  # type: ignore[method-assign]
    with pytest.raises(EffectError, match="does not thaw"):
        freezer.thaw()
    assert freezer.frozen
    assert "10-holds thaw" not in scripts.lines()
    inner.thaw = thaw  # type: ignore[method-assign]
    freezer.thaw()
    scripts.check_ends("thaw")


def test_a_hook_that_ends_while_it_holds_loses_the_freeze(scripts: Scripts) -> None:
    scripts.add("10-holds", freeze=HOLDS)
    scripts.add("20-dies", freeze=HOLDS_AND_DIES)
    freezer = hooked(scripts)
    freezer.freeze()
    assert freezer.lost() is None
    (scripts.folder / "die").touch()
    assert select.select([freezer.watch()], [], [], TIMEOUT)[0]
    why = freezer.lost()
    assert why == "the hook 20-dies ended while it held: exit status 7: gave up"
    with pytest.raises(EffectError, match="20-dies ended while it held"):
        freezer.thaw()
    scripts.check_ends("abort")


def test_a_freeze_that_is_broken_off_while_a_hook_runs(scripts: Scripts) -> None:
    scripts.add("10-holds", freeze=HOLDS)
    scripts.add("20-slow", freeze=HANGS)
    freezer = hooked(scripts, blocking=False)
    work = freezer.freeze()
    until = time.monotonic() + TIMEOUT
    while "20-slow freeze" not in scripts.lines():
        assert isinstance(work, Pending)
        assert time.monotonic() < until
        select.select([work.descriptor], [], [], 0.05)
        work = work.resume()
    assert isinstance(work, Pending)
    work.cancel()
    settle(freezer.thaw())
    scripts.check_ends("abort")
    assert not freezer.frozen


def runner_of(freezer: HookedFreezer) -> int:
    run = freezer._run
    assert run is not None
    assert run._runner is not None
    process = run._runner._process
    assert process is not None
    return process.pid


def go_on_until(scripts: Scripts, work: Pending[None] | None, line: str) -> Pending[None]:
    until = time.monotonic() + TIMEOUT
    while line not in scripts.lines():
        assert isinstance(work, Pending)
        assert time.monotonic() < until, scripts.lines()
        select.select([work.descriptor], [], [], 0.02)
        work = work.resume()
    assert isinstance(work, Pending)
    return work


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("at", ["prepare", "freeze", "frozen", "thaw"])
def test_another_process_gives_the_ends_when_that_of_the_hooks_is_killed(
    scripts: Scripts, at: str, by: signal.Signals
) -> None:
    waits = 'until [ -e "$D/go" ]; do sleep 0.02; done'
    scripts.add("10-holds", freeze=HOLDS)
    scripts.add("20-slow", **({at: waits} if at != "frozen" else {}))
    scripts.add("30-last", freeze=HOLDS)
    freezer = hooked(scripts, blocking=False)
    work = freezer.freeze()
    if at in ("prepare", "freeze"):
        work = go_on_until(scripts, work, f"20-slow {at}")
        os.kill(runner_of(freezer), by)
        with pytest.raises(EffectError) as failed:
            settle(work)
        assert failed.value.reason is Reason.HOOKS_NOT_RUN
        scripts.check_ends("abort")
        return
    settle(work)
    if at == "frozen":
        os.kill(runner_of(freezer), by)
        assert select.select([freezer.watch()], [], [], TIMEOUT)[0]
        assert "the hooks was" in str(freezer.lost()) or "was told to end" in str(freezer.lost())
        with pytest.raises(EffectError):
            settle(freezer.thaw())
        scripts.check_ends("abort")
        return
    work = go_on_until(scripts, freezer.thaw(), "20-slow thaw")
    os.kill(runner_of(freezer), by)
    (scripts.folder / "go").touch()
    settle(work)
    scripts.check_ends("thaw")


def test_one_that_is_stopped_is_replaced(scripts: Scripts, monkeypatch: pytest.MonkeyPatch) -> None:
    scripts.add("10-holds", freeze=HOLDS)
    freezer = hooked(scripts)
    freezer.freeze()
    run = freezer._run
    assert run is not None
    monkeypatch.setattr(
        type(run), "_time_for_ends", lambda self: 1.0 if self._request["known"] is None else TIMEOUT
    )
    os.kill(runner_of(freezer), signal.SIGSTOP)
    freezer.thaw()
    scripts.check_ends("thaw")


def test_held_hooks_see_the_end_of_the_pipe_when_nobody_is_left(scripts: Scripts) -> None:
    scripts.add("10-holds", freeze=HOLDS)
    freezer = hooked(scripts)
    freezer.freeze()
    pid = runner_of(freezer)
    os.kill(pid, signal.SIGKILL)
    run = freezer._run
    assert run is not None
    run.close()
    scripts.wait_for("10-holds eof")
    scripts.check_ends()
    freezer._run = None
    os.waitpid(pid, 0)


@pytest.mark.parametrize("at", ["prepare", "freeze", "frozen", "thaw"])
def test_a_killed_agent_leaves_no_hook_without_its_end(scripts: Scripts, at: str) -> None:
    waits = 'until [ -e "$D/go" ]; do sleep 0.02; done'
    scripts.add("10-holds", freeze=HOLDS)
    scripts.add("20-slow", **({at: waits} if at != "frozen" else {}))
    agent = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("hooked_process.py")), json.dumps(str(scripts.folder))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert agent.stdin is not None
    assert agent.stdout is not None
    try:
        agent.stdin.write(b"freeze\n")
        agent.stdin.flush()
        if at == "frozen":
            assert agent.stdout.readline() == b"frozen\n"
        elif at == "thaw":
            agent.stdin.write(b"thaw\n")
            agent.stdin.flush()
        if at != "frozen":
            scripts.wait_for(f"20-slow {at}")
        agent.kill()
        agent.wait()
        (scripts.folder / "go").touch()
        scripts.wait_for_ends()
    finally:
        agent.kill()
        agent.communicate()


def test_no_hook_has_its_end_while_somebody_may_hold_the_freeze(scripts: Scripts) -> None:
    scripts.add("10-holds", freeze=HOLDS)
    family, lifeline = os.pipe()
    agent = subprocess.Popen(
        [
            *(sys.executable, str(Path(__file__).with_name("hooked_process.py"))),
            *(json.dumps(str(scripts.folder)), str(family)),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[family],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    os.close(family)
    assert agent.stdin is not None
    assert agent.stdout is not None
    try:
        agent.stdin.write(b"freeze\n")
        agent.stdin.flush()
        assert agent.stdout.readline() == b"frozen\n"
        agent.kill()
        agent.wait()
        time.sleep(0.3)  # in which nothing may happen
        assert scripts.lines()[-1] == "- frozen"
    finally:
        os.close(lifeline)
        agent.kill()
        agent.communicate()
    scripts.wait_for("10-holds abort")
    scripts.wait_for_ends()


def test_hooks_of_qemu_ga_run_as_they_are(scripts: Scripts) -> None:
    theirs = scripts.folder / "fsfreeze-hook.d"
    theirs.mkdir()
    for name in ("10-mysql.sh", "20-app.sh", "30-old.sh.rpmsave"):
        scripts.add(name, theirs)
    (theirs / "README").write_text("not a program")
    scripts.add("10-native")
    freezer = hooked(scripts, directories=[(str(scripts.directory), "native"), (str(theirs), "qemu-ga")])
    freezer.freeze()
    freezer.thaw()
    assert scripts.lines() == [
        *("10-native prepare", "10-native freeze", "10-mysql.sh freeze", "20-app.sh freeze"),
        *("- frozen", "- thawed"),
        *("10-mysql.sh thaw", "20-app.sh thaw", "10-native thaw"),
    ]
    scripts.log.write_text("")
    freezer = hooked(scripts, Still(scripts, "no disk"), directories=[(str(theirs), "qemu-ga")])
    with pytest.raises(EffectError):
        freezer.freeze()
    assert scripts.lines()[-2:] == ["10-mysql.sh thaw", "20-app.sh thaw"]


def test_scripts_of_open_vm_tools_run_as_they_are(scripts: Scripts) -> None:
    theirs = scripts.folder / "backupScripts.d"
    theirs.mkdir()
    for name in ("10-db", "20-app"):
        scripts.add(name, theirs)
    directories = [(str(theirs), "open-vm-tools")]
    freezer = hooked(scripts, directories=directories)
    freezer.freeze()
    freezer.thaw()
    assert scripts.lines() == [
        *("10-db freeze", "20-app freeze", "- frozen", "- thawed", "20-app thaw", "10-db thaw"),
    ]
    scripts.log.write_text("")
    freezer = hooked(scripts, Still(scripts, "no disk"), directories=directories)
    with pytest.raises(EffectError):
        freezer.freeze()
    assert scripts.lines()[-2:] == ["20-app freezeFail", "10-db freezeFail"]


@pytest.mark.parametrize(
    "kind", ["writable", "not executable", "a directory", "writable directory", "dangling"]
)
def test_a_file_that_is_no_hook_refuses_the_backup(scripts: Scripts, kind: str) -> None:
    path = scripts.directory / "10-one"
    match kind:
        case "writable":
            scripts.add("10-one").chmod(0o777)
        case "not executable":
            scripts.add("10-one").chmod(0o644)
        case "a directory":
            path.mkdir()
        case "writable directory":
            scripts.add("10-one")
            scripts.directory.chmod(0o775)
        case "dangling":
            path.symlink_to("nowhere")
    freezer = hooked(scripts)
    assert not freezer.ready
    with pytest.raises(EffectError, match=r"hooks\.d") as failed:
        freezer.freeze()
    assert failed.value.reason is Reason.HOOK_REFUSED
    assert scripts.lines() == []


def test_a_hook_of_somebody_else_is_refused(scripts: Scripts) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: chown")
    os.chown(scripts.add("10-one"), 12345, 12345)
    with pytest.raises(EffectError, match="belongs to user 12345"):
        hooked(scripts).freeze()


def test_what_editors_and_packages_leave_is_passed_over(scripts: Scripts) -> None:
    for name in ("10-a~", "10-a.dpkg-old", "10-a.rpmsave", ".10-a.swp", "10-a.sample"):
        scripts.add(name)
    scripts.add("20-b")
    freezer = hooked(scripts)
    assert [hook.name for hook in freezer.found().hooks] == ["20-b"]


def test_a_program_that_cannot_be_started_has_no_end(scripts: Scripts) -> None:
    scripts.add("10-good")
    path = scripts.directory / "20-none"
    path.write_text("#!/nowhere/interpreter\n")
    path.chmod(0o755)
    with pytest.raises(EffectError, match="the hook 20-none at prepare: cannot be started: No such file"):
        hooked(scripts).freeze()
    scripts.check_ends("abort")
    assert "20-none" not in scripts.log.read_text()
