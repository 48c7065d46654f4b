# SPDX-License-Identifier: Apache-2.0
"""`hvring run` and its configuration file: the file holds, the command line wins, SIGHUP reads it anew."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hvring.cli import main, run, serving
from hvring.daemon.config.schema import sections
from hvring.guest.files import FILE_MODE
from hvring.guest.pools import DIRECTORY
from hvring.host.testing import running_host
from hvring.ic.vss import NO_AUTO_RECOVERY
from hvring.transport.sysfs import Bus
from hvring.vmbus import BY_NAME, SERVICE_NAMES


def configured(*words: str) -> Any:
    parser = argparse.ArgumentParser()
    run.add_parser(parser.add_subparsers())
    args = parser.parse_args(["run", *words])
    return serving.read_configuration(args.config, run.said_words(args))


def test_words_win_over_the_file_and_what_is_not_said_does_not(tmp_path: Path) -> None:
    file = tmp_path / "hvring.toml"
    file.write_text(
        f"""
        run = {{ bind = true, services = ["kvp"], rehearse = true }}
        log.form = "json"
        [vss]
        exclude = ["/a"]
        max_frozen = 20
        [fcopy]
        allow = ["/srv"]
        mode = 0o600
        [kvp]
        pool_directory = "{tmp_path}"
        """
    )
    found = configured("--config", str(file))
    assert (found.run.bind, found.run.services, found.run.is_real, found.log.form) == (
        True,
        ("kvp",),
        False,
        "json",
    )
    assert found.services.vss.exclude == ("/a",)
    found = configured(
        *(
            "--config",
            str(file),
            "vss",
            "--virtual",
            "/sock",
            "--real",
            "--exclude",
            "/b",
            "--copy-mode",
            "644",
        ),
        *("--max-frozen", "9", "-v", "--pool-dir", "pools", "--backup-flags", "host"),
    )
    assert (found.run.bind, found.run.virtual, list(found.run.services)) == (False, "/sock", ["vss"])
    assert found.run.is_real
    assert found.services.real
    assert (found.log.form, found.log.level) == ("json", "debug")
    assert (found.services.vss.exclude, found.services.vss.max_frozen) == (["/b"], 9.0)
    assert found.services.vss.capability_flags is None
    assert (found.services.fcopy.mode, found.services.fcopy.allow) == (0o644, ("/srv",))
    assert found.services.kvp.pool_directory == "pools"


def test_every_word_of_the_command_line_is_a_knob() -> None:
    parser = argparse.ArgumentParser()
    run.add_parser(parser.add_subparsers())
    inner = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction)).choices["run"]
    knobs = {f"{section.name}.{name}" for section in sections().values() for name in section.knobs}
    others = {action.dest for action in inner._actions if action.dest not in knobs}
    assert others <= {"help", "config", "health", "health_file"}
    assert all("." not in name for name in others)


def test_what_the_help_says_is_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert run.SERVICES == SERVICE_NAMES
    assert f"{Bus()._root}/devices" == run.BUS
    assert [name for name in SERVICE_NAMES if BY_NAME[name].only_if_named] == ["timesync"]
    assert f"or else {FILE_MODE:o}" in said
    assert f"are real: {DIRECTORY}" in said
    assert f"default: {NO_AUTO_RECOVERY}, no automatic recovery" in said


@pytest.mark.parametrize("text", [None, "# virtual = 1\n[kvp]\ntimeot = 1\n"])
def test_off_hyper_v_it_ends_before_anything_is_loaded(tmp_path: Path, text: str | None) -> None:
    words = ["run"]
    if text is not None:
        (tmp_path / "hvring.toml").write_text(text)
        words += ["--config", str(tmp_path / "hvring.toml")]
    code = f"""
import sys
from hvring.cli import main, run
run.BUS, run.CONFIGURATION = "/nowhere", "/nowhere"
status = main({words})
heavy = {{"asyncio", "logging", "socket", "dataclasses", "tomllib", "inspect", "numpy", "shutil", "zlib"}}
print(status, *sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "0\n"
    assert "no Hyper-V guest" in done.stderr


def test_a_bad_file_ends_it_with_all_that_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "hvring.toml"
    file.write_text(f"[run]\nvirtual = '{tmp_path}/sock'\n[kvp]\ntimeot = 1\ntimeout = 0\n")
    assert main(["run", "--config", str(file)]) == 2
    err = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1] for line in err] == [f"{file}:4", f"{file}:5"]
    assert main(["run", "--virtual", "/sock", "--config", str(tmp_path / "none")]) == 2
    assert "No such file" in capsys.readouterr().err
    assert main(["run", "--virtual", "/sock", "--config", "/dev/null", "--max-frozen", "90"]) == 2
    assert "vss.deadline: 90 is not above max_frozen" in capsys.readouterr().err


def test_sighup_reads_the_file_anew_and_no_channel_is_opened_anew(
    tmp_path: Path, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    file = tmp_path / "hvring.toml"
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()

    def write(folder: str, more: str = "") -> None:
        file.write_text(f"{more}[fcopy]\nallow = ['{tmp_path}/{folder}']\n")

    try:
        write("one")
        with running_host(tmp_path / "host.sock", ["fcopy"]) as host:
            agent = start(
                *("run", "fcopy", "--virtual", host.path, "--config", file, "--json"), start_new_session=True
            )
            host.do(host.wait_ready("fcopy"))
            host.do(host.fcopy.copy(b"1", str(tmp_path / "one"), name="file"))
            write("two", "[run]\nbind = true\n")
            agent.process.send_signal(signal.SIGHUP)
            facts = json.loads(agent.wait_for('"reloaded"'))
            assert facts["applied"] == "fcopy.allow"
            host.do(host.fcopy.copy(b"2", str(tmp_path / "two"), name="file"))
            write("two", "nonsense")
            agent.process.send_signal(signal.SIGHUP)
            assert "the old configuration stays" in agent.wait_for('"failed"')
            host.do(host.fcopy.copy(b"3", str(tmp_path / "two"), name="other"))
            assert host.violations == []
            assert agent.end() == 0
            summary = json.loads(agent.lines[-1])
            assert summary["services"]["fcopy"]["openings"] == 1
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_pipe_in_which_nothing_is_yet_is_refused_as_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    holder = os.open(tmp_path / "pipe", os.O_RDWR)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "hvring", "run", "--config", tmp_path / "pipe"],
            capture_output=True,
            text=True,
            timeout=60,
        )
    finally:
        os.close(holder)
    assert done.returncode == 2
    assert done.stderr == f"hvring run: {tmp_path}/pipe: not a regular file\n"
