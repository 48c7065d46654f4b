# SPDX-License-Identifier: Apache-2.0
"""How `hvring run` ends, and by what it does not."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvring.host.client import ControlClient


@pytest.fixture(autouse=True)
def hangups_are_heard() -> Iterator[None]:
    """Whoever runs the tests under `nohup` has their programs ignore SIGHUP, too."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def test_sighup_does_not_end_a_service_and_what_ends_it_does(tmp_path: Path, start) -> None:
    agent = start("run", "heartbeat", "--virtual", tmp_path / "sock", start_new_session=True)
    agent.wait_for("serving")
    agent.process.send_signal(signal.SIGHUP)  # also before there is a loop
    start("host", "--socket", tmp_path / "sock")
    agent.wait_for("negotiated")
    for _ in range(3):
        agent.process.send_signal(signal.SIGHUP)
        agent.wait_for("reload")
    assert agent.end(signal.SIGQUIT) == 0


def test_an_agent_whose_terminal_is_gone_ends_as_if_it_was_told_to(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    take_the_terminal = "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    program = take_the_terminal + "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    words = ["-m", "hvring", "run", "heartbeat", "--virtual", str(tmp_path / "sock")]
    process = subprocess.Popen(
        [sys.executable, "-c", program, *words], stdin=theirs, stdout=subprocess.PIPE, text=True
    )
    try:
        os.close(theirs)
        assert process.stdout is not None
        assert "serving" in process.stdout.readline()
        os.close(ours)  # the kernel sends SIGHUP
        assert process.wait(60) == 0  # not killed by it
    finally:
        process.kill()
        process.communicate()


# These end nothing by default, cannot be held back, or tell of an error of the program itself.
OTHERS = {
    "SIGKILL",
    "SIGSTOP",
    "SIGSEGV",
    "SIGBUS",
    "SIGFPE",
    "SIGILL",
    "SIGABRT",
    "SIGTRAP",
    "SIGSYS",
    "SIGXFSZ",
    "SIGPIPE",
    "SIGRTMIN",
    "SIGRTMAX",
    "SIGCHLD",
    "SIGCONT",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGWINCH",
    "SIGHUP",
}
ENDING = sorted(s for s in signal.Signals if s.name not in OTHERS)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGALRM, signal.SIGPWR])
def test_whatever_ends_an_agent_ends_it_in_order(tmp_path: Path, start, number: int) -> None:
    agent = start("run", "heartbeat", "--virtual", tmp_path / "sock", start_new_session=True)
    agent.wait_for("serving")
    assert agent.end(number) == 0


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_before_the_loop_runs_undoes_what_was_done(number: int) -> None:
    """While devices are being bound there is no loop to take a signal; nor while they are given back."""
    program = textwrap.dedent(
        f"""
        import os, signal
        from hvring.daemon.signals import ending_signals
        with ending_signals():
            try:
                os.kill(os.getpid(), {int(number)})
                signal.pause()
            finally:
                os.kill(os.getpid(), {int(number)})  # a second one does not disturb
                print("given back", flush=True)
        print("ended", flush=True)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split("\n") == ["given back", "ended", ""]


def test_who_ignores_the_hangup_meant_it() -> None:
    program = textwrap.dedent(
        """
        import os, signal
        from hvring.daemon.signals import ending_signals
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with ending_signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            print("still here", signal.getsignal(signal.SIGHUP) is signal.SIG_IGN)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "still here True\n"


def test_an_output_that_nobody_reads_any_more_does_not_end_the_agent(tmp_path: Path, start) -> None:
    reader, writer = os.pipe()
    words = [sys.executable, "-m", "hvring", "run", "heartbeat", "--virtual", str(tmp_path / "sock")]
    process = subprocess.Popen(words, stdout=writer, start_new_session=True)
    try:
        os.close(writer)
        assert os.read(reader, 4096)
        os.close(reader)
        host = start("host", "--socket", tmp_path / "sock")  # its events cannot be written any more
        host.wait_for("heartbeat", "negotiated")
        host.wait_for("heartbeat", "ok, applications")
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def test_an_output_that_nobody_empties_holds_nothing_up(tmp_path: Path, start) -> None:
    """A pager that waits for a key: the pipe is full, the host is answered, and SIGTERM ends it."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    words = [sys.executable, "-m", "hvring", "run", "--virtual", str(tmp_path / "sock"), "--json"]
    words += ["--pool-dir", str(tmp_path / "pools")]
    process = subprocess.Popen(words, stdout=writer, stderr=writer, start_new_session=True)
    try:
        os.close(writer)
        host = start("host", "--socket", tmp_path / "sock")
        host.wait_for("fcopy", "negotiated")
        with ControlClient(tmp_path / "sock") as client:
            for n in range(40):  # each is told with its key, which fills the pipe
                client.request("kvp", action="set", key="k" * 240 + str(n), value="v")
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(reader)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGALRM])
def test_a_signal_while_the_loop_is_made_is_heard_by_it(tmp_path: Path, number: int) -> None:
    program = textwrap.dedent(f"""
        import asyncio, os, sys
        from hvring.cli import main
        make = asyncio.events.new_event_loop
        def make_late():
            os.kill(os.getpid(), {int(number)})
            return make()
        asyncio.events.new_event_loop = make_late
        sys.exit(main(sys.argv[1:]))
    """)
    words = ["run", "heartbeat", "--virtual", str(tmp_path / "sock"), "--json"]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *words], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert '"event": "summary"' in done.stdout.splitlines()[-1]
