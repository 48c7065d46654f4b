# SPDX-License-Identifier: Apache-2.0
"""Commands whose outputs are closed, full, or shared, whose directory is gone, and whose words are empty."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hvring.cli import main
from hvring.daemon.lines import Lines
from hvring.guest.files import DirectoryReceiver
from hvring.guest.freezer import RehearsedFreezer
from hvring.services import Vss

HVRING = [sys.executable, "-W", "error", "-m", "hvring"]


@pytest.fixture
def pools(tmp_path: Path) -> Path:
    subprocess.run([*HVRING, "kvp", "set", "--pool-dir", tmp_path, "key", "value"], check=True, timeout=60)
    return tmp_path


READING = [
    ["get", "key"],
    ["get", "key", "--json"],
    ["list", "--pool", "guest"],
    ["list", "--pool", "guest", "--raw"],
    ["list", "--pool", "guest", "--json"],
]


@pytest.mark.parametrize("words", READING)
def test_an_output_that_is_full_is_said_in_a_line(pools: Path, words: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*HVRING, "kvp", *words, "--pool-dir", pools], stdout=full, stderr=subprocess.PIPE, timeout=60
        )
    assert done.stderr == b"hvring kvp: No space left on device\n"
    assert done.returncode == 1


@pytest.mark.parametrize("words", READING)
def test_who_closes_the_output_wants_none(pools: Path, words: list[str]) -> None:
    command = ["sh", "-c", '"$@" >&-', "sh", *HVRING, "kvp", *words, "--pool-dir", pools]
    done = subprocess.run(command, stderr=subprocess.PIPE, timeout=60)
    assert done.stderr == b""
    assert done.returncode == 0


def test_the_log_of_an_agent_whose_stderr_is_closed_does_not_get_among_its_json(
    tmp_path: Path, start
) -> None:
    """Nor does any other file get the number 2."""
    words = ["run", "--virtual", str(tmp_path / "sock"), "--json", "--verbose", "--pool-dir", str(tmp_path)]
    process = subprocess.Popen(
        ["sh", "-c", 'exec "$@" 2>&- <&-', "sh", *HVRING, *words], stdout=subprocess.PIPE, text=True
    )
    try:
        start("host", "--socket", tmp_path / "sock").wait_for("fcopy", "negotiated")
        assert {os.readlink(f"/proc/{process.pid}/fd/{number}") for number in (0, 2)} == {os.devnull}
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0
    assert [json.loads(line) for line in out.splitlines()][-1]["event"] == "summary"


def test_lines_get_whole_through_an_output_that_somebody_made_non_blocking() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    lines = [f"{number} " + "x" * 1000 for number in range(500)]
    with open(writer, "w") as stream, Lines(stream) as say:
        for line in lines:
            say(line)
        got = b""
        while not got.endswith(b"x\n") or got.count(b"\n") < len(lines):
            assert select.select([reader], [], [], 60)[0], "the rest was lost"
            data = os.read(reader, 65536)
            assert data
            got += data
    os.close(reader)
    assert got.decode().splitlines() == lines


@pytest.mark.parametrize(
    "words",
    [
        ["run", "--virtual", "sock"],
        ["run", "--virtual", "sock", "--pool-dir", "x", "--allow", "y"],
        ["host", "--socket", "sock", "copy", "file", "/srv"],
    ],
)
def test_a_working_directory_that_is_gone_is_said_in_a_line(tmp_path: Path, words: list[str], start) -> None:
    where = tmp_path / "gone"
    where.mkdir()
    command = 'cd "$1" && rmdir "$1" && shift && TMPDIR=x exec "$@"'
    done = subprocess.run(
        ["sh", "-c", command, "sh", where, *HVRING, *words],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONSAFEPATH": "1"},
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"hvring {words[0]}: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_directory_for_temporary_files_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = subprocess.run(
        [*HVRING, "run", "--virtual", tmp_path / "sock"],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "TMPDIR": "/proc/nowhere"},
    )
    assert (done.returncode, done.stderr) == (1, "hvring run: /proc/nowhere: No such file or directory\n")


def test_ctrl_c_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("hvring.cli.kvp.run", interrupted)
    assert main(["kvp", "list"]) == 130


@pytest.mark.parametrize(
    "words",
    [
        ["--allow", ""],
        ["--pool-dir", ""],
        ["--only", ""],
        ["--copy-mode", "-1"],
        ["--copy-mode", "99999"],
        ["--copy-mode", "888"],
        ["--copy-max-size", "-4"],
        ["--copy-owner", "0:4294967295"],
        ["--loop", ""],
        ["--backup-flags", "-1"],
        ["--backup-flags", "0x100000000"],
        ["--backup-flags", "none"],
        ["--max-frozen", "nan"],
        ["--max-frozen", "inf"],
        ["--max-frozen", "0"],
    ],
)
def test_what_can_mean_nothing_is_refused_before_anything_is_served(tmp_path: Path, words: list[str]) -> None:
    """An empty directory would be the working one: `--allow "$UNSET"` would let the host write there."""
    done = subprocess.run(
        [*HVRING, "run", "--virtual", tmp_path / "sock", f"{words[0]}={words[1]}"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert f"argument {words[0]}: " in done.stderr
    assert "lambda" not in done.stderr


@pytest.mark.parametrize(
    "how", [{"allowed": [""]}, {"mode": -1}, {"mode": 0o10000}, {"max_size": -1}, {"owner": (-1, 0)}]
)
def test_a_receiver_refuses_the_same(how: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="no "):
        DirectoryReceiver(**how)  # type: ignore[arg-type]


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_a_freeze_has_an_end(seconds: float) -> None:
    with pytest.raises(ValueError, match="end"):
        Vss(RehearsedFreezer(list), max_frozen=seconds)
