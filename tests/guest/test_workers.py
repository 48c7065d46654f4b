# SPDX-License-Identifier: Apache-2.0
"""A file system that does not answer, played by a worker that is stopped; and the ends of both processes."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hvring.errors import EffectError
from hvring.guest import workers
from hvring.guest.files import DirectoryReceiver, Incoming
from hvring.guest.workers import MOST_STUCK, Worker
from hvring.pending import Pending, settle

ROOT = Path(__file__).parents[2]
LARGE = bytes(1 << 16)  # is not gathered with other writes

NAMED = """
import errno, os
really = os.open
def opened(path, flags, *rest, **more):
    if flags & os.O_TMPFILE == os.O_TMPFILE:
        raise OSError(errno.EOPNOTSUPP, "not supported")
    return really(path, flags, *rest, **more)
os.open = opened
"""


@pytest.fixture
def drop(tmp_path: Path) -> Path:
    folder = tmp_path / "drop"
    folder.mkdir()
    return folder


@pytest.fixture
def stopped() -> Iterator[list[int]]:
    """Processes that are to go on at the end, if they are there still."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        go_on(pid)


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers on a file system that has no files without a name."""
    monkeypatch.setattr(workers, "_PROGRAM", NAMED + workers._PROGRAM)


def go_on(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        pass


def worker_of(incoming: Incoming) -> int:
    return incoming._worker.pid  # type: ignore[attr-defined,no-any-return]


def wait_for_end(pid: int, seconds: float = 30) -> None:
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([process], [], [], seconds)[0], "it goes on"
    finally:
        os.close(process)


@pytest.mark.parametrize("step", ["start", "write", "complete", "abort"])
def test_whatever_does_not_answer_is_given_up_at_its_deadline_and_leaves_nothing(
    drop: Path, named: None, stopped: list[int], step: str
) -> None:
    receiver = DirectoryReceiver([drop], timeout=0.3, sync_timeout=0.3)
    unhurried = DirectoryReceiver([drop])
    receiver._workers = unhurried._workers  # the first start takes as long as an interpreter
    made = f"{drop}/made"
    incoming = settle(unhurried.start(made, "f", create_path=True, size=len(LARGE)))
    pid = worker_of(incoming)
    if step == "start":
        settle(incoming.abort())
    else:
        if step == "complete":
            settle(incoming.write(0, LARGE))
        incoming._timeout = incoming._sync_timeout = 0.3  # type: ignore[attr-defined]
    os.kill(pid, signal.SIGSTOP)
    stopped.append(pid)
    began = time.monotonic()
    with pytest.raises(EffectError, match="does not answer"):
        if step == "start":
            settle(receiver.start(made, "f", create_path=True, size=1))
        elif step == "write":
            settle(incoming.write(0, LARGE))
        elif step == "complete":
            settle(incoming.complete())
        else:
            settle(incoming.abort())
    assert time.monotonic() - began >= 0.3
    if step != "start":
        with pytest.raises(EffectError, match="has ended"):
            incoming.write(0, b"x")
        assert incoming.abort() is None
    other = settle(unhurried.start(str(drop), "other"))  # nobody else has to wait
    assert worker_of(other) != pid
    settle(other.complete())
    go_on(pid)
    wait_for_end(pid)
    assert os.listdir(drop) == ["other"]


def test_who_does_not_wait_for_the_end_of_a_copy_whose_last_write_hangs_has_its_process_counted_and_reaped(
    drop: Path, stopped: list[int]
) -> None:
    receiver = DirectoryReceiver([drop])
    incoming = settle(receiver.start(str(drop), "f"))
    pid = worker_of(incoming)
    os.kill(pid, signal.SIGSTOP)
    stopped.append(pid)
    offset = 0
    while incoming._behind is None:  # type: ignore[attr-defined]
        incoming.write(offset, bytes(4096))
        offset += 4096
    given_up = incoming.abort()
    assert isinstance(given_up, Pending)
    given_up.cancel()
    assert [worker.pid for worker in receiver._workers._ending] == [pid]
    go_on(pid)
    wait_for_end(pid)
    settle(settle(receiver.start(str(drop), "g")).complete())
    assert receiver._workers._ending == []
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    assert os.listdir(drop) == ["g"]


def test_a_call_comes_back_at_once_though_nothing_answers(drop: Path, stopped: list[int]) -> None:
    receiver = DirectoryReceiver([drop])
    settle(settle(receiver.start(str(drop), "f")).complete())
    incoming = settle(receiver.start(str(drop), "g"))
    stopped.append(worker_of(incoming))
    os.kill(stopped[0], signal.SIGSTOP)
    outcome = incoming.write(0, LARGE)
    assert isinstance(outcome, Pending)
    assert not select.select([outcome.descriptor], [], [], 0)[0]
    go_on(stopped[0])
    assert select.select([outcome.descriptor], [], [], 30)[0]
    assert outcome.resume() is None
    settle(incoming.complete())


def test_small_pieces_are_written_while_others_come_and_none_is_lost(drop: Path, stopped: list[int]) -> None:
    """As many as fit into two writes are taken from the host before it has to wait for the disk."""
    receiver = DirectoryReceiver([drop])
    settle(settle(receiver.start(str(drop), "first")).complete())
    chunk, count = 6144, 100
    data = random.Random(1).randbytes(chunk * count)
    incoming = settle(receiver.start(str(drop), "f", size=len(data)))
    stopped.append(worker_of(incoming))
    os.kill(stopped[0], signal.SIGSTOP)
    waits = 0
    for at in range(0, len(data), chunk):
        outcome = incoming.write(at, data[at : at + chunk])
        if isinstance(outcome, Pending):
            assert waits or 1 << 16 < at < 1 << 17  # the later ones are as slow as this machine
            waits += 1
            go_on(stopped[0])
            settle(outcome)
    assert waits
    settle(incoming.complete())
    assert (drop / "f").read_bytes() == data


@pytest.mark.parametrize("in_order", [False, True])
def test_a_write_that_fails_late_is_told_late_and_nothing_is_published(drop: Path, in_order: bool) -> None:
    """A file larger than the process may write."""
    receiver = DirectoryReceiver([drop])
    incoming = settle(receiver.start(str(drop), "f", size=60_000))
    resource.prlimit(worker_of(incoming), resource.RLIMIT_FSIZE, (10_000, 10_000))
    if in_order:
        # They are gathered: whether one of them already hears of it depends on how soon they are written.
        with contextlib.suppress(EffectError):
            for at in range(0, 60_000, 6000):
                settle(incoming.write(at, bytes(6000)))
    else:
        with pytest.raises(EffectError, match="too large"):
            settle(incoming.write(20_000, bytes(6000)))
    with pytest.raises(EffectError, match="too large"):
        settle(incoming.complete())
    with pytest.raises(EffectError, match="has ended"):
        settle(incoming.complete())
    assert os.listdir(drop) == []


@pytest.mark.parametrize("is_begun", [False, True])
def test_what_is_cancelled_is_taken_back(drop: Path, named: None, stopped: list[int], is_begun: bool) -> None:
    receiver = DirectoryReceiver([drop])
    incoming = settle(receiver.start(f"{drop}/made", "f", create_path=True))
    stopped.append(worker_of(incoming))
    if not is_begun:
        settle(incoming.abort())
    os.kill(stopped[0], signal.SIGSTOP)
    outcome: object = (
        incoming.complete() if is_begun else receiver.start(f"{drop}/made", "f", create_path=True)
    )
    assert isinstance(outcome, Pending)
    outcome.cancel()
    go_on(stopped[0])
    wait_for_end(stopped[0])
    assert os.listdir(drop) == []
    settle(settle(receiver.start(str(drop), "g")).complete())
    assert os.listdir(drop) == ["g"]


def test_so_many_may_hang_and_no_more_until_one_ends(drop: Path, stopped: list[int]) -> None:
    receiver = DirectoryReceiver([drop])
    copies = [settle(receiver.start(str(drop), f"f{n}")) for n in range(MOST_STUCK)]
    for incoming in copies:
        stopped.append(worker_of(incoming))
        os.kill(stopped[-1], signal.SIGSTOP)
        outcome = incoming.write(0, LARGE)
        assert isinstance(outcome, Pending)
        outcome.cancel()
    for _ in range(3):
        with pytest.raises(EffectError, match="4 processes for files hang"):
            receiver.start(str(drop), "g")
    go_on(stopped[0])
    wait_for_end(stopped[0])
    settle(settle(receiver.start(str(drop), "g")).complete())
    assert os.listdir(drop) == ["g"]


@pytest.mark.parametrize("is_idle", [False, True])
def test_a_killed_worker_ends_its_copy_and_no_other(drop: Path, is_idle: bool) -> None:
    receiver = DirectoryReceiver([drop])
    incoming = settle(receiver.start(str(drop), "f"))
    pid = worker_of(incoming)
    if is_idle:
        settle(incoming.complete())
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    if not is_idle:
        with pytest.raises(EffectError, match="has ended"):
            settle(incoming.write(0, LARGE))
    again = settle(receiver.start(str(drop), "g"))
    assert worker_of(again) != pid
    settle(again.complete())
    assert sorted(os.listdir(drop)) == (["f", "g"] if is_idle else ["g"])


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("moment", ["before the name", "after it"])
def test_who_loses_the_process_while_the_file_gets_its_name_says_what_is_there(
    drop: Path, monkeypatch: pytest.MonkeyPatch, moment: str, overwrite: bool
) -> None:
    """It is killed amid the last step; the next one looks."""
    before = (
        "os.kill(os.getpid(), 9)" if moment == "before the name" else "publish(part); os.kill(os.getpid(), 9)"
    )
    dying = f"""
import os
from hvring.guest.part import Part
publish = Part.publish
def dies(part):
    {before}
Part.publish = dies
"""
    if overwrite:
        (drop / "f").write_bytes(b"old")
    receiver = DirectoryReceiver([drop])
    with monkeypatch.context() as patch:
        patch.setattr(
            workers, "_PROGRAM", workers._PROGRAM.replace("import main;", f"import main; exec({dying!r});")
        )
        incoming = settle(receiver.start(str(drop), "f", size=3, overwrite=overwrite))
    settle(incoming.write(0, b"new"))
    if moment == "before the name":
        with pytest.raises(EffectError, match="has ended"):
            settle(incoming.complete())
        assert (drop / "f").exists() == overwrite
    else:
        assert settle(incoming.complete()) == str(drop / "f")
        assert (drop / "f").read_bytes() == b"new"
    assert receiver._workers._idle is not None  # the one that looked is lent again
    settle(settle(receiver.start(str(drop), "g")).complete())
    receiver.close()
    assert settle(receiver.sweep()) == 0  # and has swept
    assert sorted(os.listdir(drop)) == (["f", "g"] if overwrite or moment == "after it" else ["g"])


@pytest.mark.parametrize("at_once", [True, False])
def test_a_directory_that_is_gone_keeps_no_other_from_being_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    answer = Worker._answer

    def patient(self: Worker, until: float, timeout: float) -> Any:
        if at_once:
            assert select.select([self._control], [], [], 60)[0]
        return answer(self, until, timeout)

    monkeypatch.setattr(Worker, "_answer", patient)
    (tmp_path / ".hvring-0.part").touch()
    assert settle(DirectoryReceiver([tmp_path / "gone", tmp_path]).sweep()) == 1


@pytest.mark.usefixtures("named")
def test_a_sweep_takes_what_is_left_and_nothing_under_way_and_its_process_is_gone(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "two", "three")]
    for folder in folders:
        (folder / "deep").mkdir(parents=True)
        for n in range(3):
            (folder / "deep" / f".hvring-{n}.part").touch()
    receiver = DirectoryReceiver([folders[0], tmp_path / "gone", folders[1]])
    other = DirectoryReceiver([folders[0]])
    incoming = settle(other.start(f"{folders[0]}/deep", "f", size=3))
    before = children()
    assert settle(receiver.sweep()) >= 3  # of six: the other one's process is at it, too
    assert children() == before
    settle(other.start(f"{folders[0]}/deep", "g")).abort()
    assert settle(receiver.sweep()) == 0
    settle(incoming.write(0, b"new"))
    settle(incoming.complete())
    assert [sorted(os.listdir(folder / "deep")) for folder in folders[:2]] == [["f"], []]
    assert len(os.listdir(folders[2] / "deep")) == 3
    assert settle(DirectoryReceiver().sweep()) == 0
    (folders[2] / "deep" / "f").touch()
    assert settle(DirectoryReceiver([folders[2]], sweeps=False).sweep()) == 0
    assert len(os.listdir(folders[2] / "deep")) == 4


def children() -> list[int]:
    return [int(pid) for pid in Path("/proc/thread-self/children").read_text().split()]


def test_a_worker_has_no_descriptor_but_its_own_and_ignores_what_ends_an_agent(drop: Path) -> None:
    leak = os.open(drop.parent, os.O_RDONLY)
    os.set_inheritable(leak, True)
    try:
        incoming = settle(DirectoryReceiver([drop]).start(str(drop), "f"))
    finally:
        os.close(leak)
    pid = worker_of(incoming)
    targets = []
    for number in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile: it may be sweeping the directory
            targets += [os.readlink(f"/proc/{pid}/fd/{number}")] if int(number) > 2 else []
    # Beside the file and its directory.
    assert sorted(target.split(":")[0] for target in targets if not target.startswith(str(drop))) == [
        "anon_inode",
        "socket",
    ]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(pid, number)
    settle(incoming.complete())
    assert os.listdir(drop) == ["f"]


def test_a_worker_ends_with_its_receiver_and_leaves_no_zombie(drop: Path) -> None:
    receiver = DirectoryReceiver([drop])
    incoming = settle(receiver.start(str(drop), "f"))
    pid = worker_of(incoming)
    settle(incoming.complete())
    del incoming, receiver
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.usefixtures("named")
def test_leftovers_are_swept_once_the_host_has_its_answer(drop: Path) -> None:
    for n in range(1000):
        (drop / f".hvring-{n}.part").touch()
    receiver = DirectoryReceiver([drop])
    incoming = settle(receiver.start(str(drop), "f"))
    pid = worker_of(incoming)
    settle(incoming.complete())
    receiver.close()
    wait_for_end(pid)
    assert os.listdir(drop) == ["f"]


AGENT = """
import os, sys
from hvring.guest import workers
from hvring.guest.files import DirectoryReceiver
from hvring.pending import settle
drop, named, sizes = sys.argv[1], sys.argv[2], range(1, 1 << 20)
workers._PROGRAM = named + workers._PROGRAM
for line in sys.stdin:
    if os.fork():
        os.wait()
        print("over", flush=True)
        continue
    receiver = DirectoryReceiver([drop])
    print(os.getpid(), flush=True)
    for n in range(1 << 20):
        incoming = settle(receiver.start(f"{drop}/deep/er", f"{n % 7}", overwrite=n > 6, create_path=True, size=65536))
        if not n:
            print(incoming._worker.pid, flush=True)
        for at in range(0, 65536, 8192):
            settle(incoming.write(at, bytes([n & 255]) * 8192))
        settle(incoming.complete())
"""


@pytest.mark.parametrize("program", ["", NAMED], ids=["nameless", "named"])
def test_whoever_is_killed_at_whatever_moment_leaves_whole_files_only(drop: Path, program: str) -> None:
    chance = random.Random(7)
    agent = subprocess.Popen(
        [sys.executable, "-c", AGENT, str(drop), program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert agent.stdin is not None
    assert agent.stdout is not None
    copied = 0
    with agent:
        for _ in range(100):
            agent.stdin.write(b"\n")
            agent.stdin.flush()
            pid, worker = int(agent.stdout.readline()), int(agent.stdout.readline())
            time.sleep(chance.random() * 0.02)  # any moment, which nothing tells
            if chance.random() < 0.5:
                os.kill(worker, signal.SIGKILL)
            os.kill(pid, signal.SIGKILL)
            assert agent.stdout.readline() == b"over\n"
            wait_for_end(worker)
            for path in drop.glob("**/[0-9]"):
                contents = path.read_bytes()
                assert len(contents) == 65536
                assert len(set(contents)) == 1
                path.unlink()
                copied += 1
    assert copied > 20  # of some hundred on a quiet machine
    receiver = DirectoryReceiver([drop])
    incoming = settle(receiver.start(f"{drop}/deep/er", "last", create_path=True))
    worker = worker_of(incoming)
    settle(incoming.complete())
    receiver.close()
    wait_for_end(worker)
    assert [path.name for path in drop.glob("deep/er/*")] + list(drop.glob("deep/er/.*")) == ["last"]
