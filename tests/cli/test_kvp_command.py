# SPDX-License-Identifier: Apache-2.0
"""``hvring kvp``: any key that is listed can be named, and nothing of the host's is obeyed by a terminal."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOSTILE = "x\x1b]0;owned\x07\x1b[2J\nPROVISIONING_REPORT  result=success"

Call = Callable[..., subprocess.CompletedProcess[bytes]]


def record(key: str | bytes, value: str | bytes) -> bytes:
    raw = [part.encode() if isinstance(part, str) else part for part in (key, value)]
    return raw[0].ljust(512, b"\0") + raw[1].ljust(2048, b"\0")


@pytest.fixture
def kvp(tmp_path: Path) -> Call:
    """kvp(verb, *words, status=0, **environment) with its pools in the test's folder"""

    def run(*words: str | bytes, status: int = 0, **environment: str) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(
            [sys.executable, "-m", "hvring", "kvp", *words[:1], "--pool-dir", str(tmp_path), *words[1:]],
            capture_output=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", **environment},
            timeout=60,
            check=False,
        )
        assert done.returncode == status, done.stderr
        assert b"Traceback" not in done.stderr
        return done

    return run


def test_every_key_that_is_listed_can_be_got_and_deleted(kvp: Call, tmp_path: Path) -> None:
    path = tmp_path / ".kvp_pool_0"
    path.write_bytes(
        record(b"caf\xe9", b"latin \xe9")
        + record("k" * 512, "v" * 2048)
        + record("\U0001f511" * 128, "key")
        + record("--x\n", "odd")
    )
    pairs = json.loads(kvp("list", "--json").stdout)
    assert len(pairs) == 4
    for key, value in pairs:
        raw = os.fsencode(key)
        assert kvp("get", "--", raw).stdout == os.fsencode(value) + b"\n"
        kvp("delete", "--pool", "external", "--", raw)
        kvp("get", "--", raw, status=1)
    assert path.read_bytes() == b""


def test_all_records_of_a_key_are_listed_the_last_is_got_and_all_are_deleted(
    kvp: Call, tmp_path: Path
) -> None:
    path = tmp_path / ".kvp_pool_1"
    path.write_bytes(
        record("k", "error") + record("other", "1") + record("k", "success") + record("", "hole")
    )
    pairs = [["k", "error"], ["other", "1"], ["k", "success"]]
    assert json.loads(kvp("list", "--json", "--pool", "guest").stdout) == pairs
    assert kvp("get", "k").stdout == b"success\n"
    kvp("delete", "k")
    kvp("delete", "k", status=1)
    assert kvp("list", "--pool", "guest").stdout == b"other  1\n"


def test_the_hosts_words_are_escaped_for_whoever_reads_them_and_raw_on_request(
    kvp: Call, tmp_path: Path
) -> None:
    (tmp_path / ".kvp_pool_0").write_bytes(record("motd\x1b[2J", HOSTILE))
    out = kvp("list").stdout
    assert out.count(b"\n") == 1
    assert b"\x1b" not in out
    assert b"\\x1b]0;owned\\x07" in out
    assert kvp("list", "--raw").stdout == f"motd\x1b[2J\t{HOSTILE}\n".encode()
    assert kvp("get", "motd\x1b[2J").stdout == f"{HOSTILE}\n".encode()
    assert json.loads(kvp("get", "--json", "motd\x1b[2J").stdout) == HOSTILE
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "hvring", "kvp", "get", "motd\x1b[2J", "--pool-dir", str(tmp_path)]
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        subprocess.run(command, stdout=theirs, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
        os.close(theirs)
        shown = terminal.read(4096)
    assert b"\x1b" not in shown
    assert shown.count(b"\n") == 1


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_an_output_that_is_not_utf_8_is_no_traceback(kvp: Call, encoding: str) -> None:
    kvp("set", "ключ", "\U0001f511 é")
    environment = {"PYTHONIOENCODING": encoding}
    assert kvp("get", "ключ", **environment).stdout == "\U0001f511 é\n".encode()
    assert json.loads(kvp("get", "ключ", "--json", **environment).stdout) == "\U0001f511 é"
    assert json.loads(kvp("list", "--json", "--pool", "1", **environment).stdout) == [
        ["ключ", "\U0001f511 é"]
    ]
    assert b"\\u043a" in kvp("list", "--pool", "1", **environment).stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["k" * 255, "v"], "the key has 255 bytes, 254"),
        (["k", "v" * 1023], "the value has 1023 bytes, 1022 are sure to reach a host; it can be split"),
        (["\U0001f511" * 128, "v"], "512 bytes"),
        (["", "v"], "empty"),
        ([b"caf\xe9", "v"], "not proper Unicode"),
        (["k", b"\xff"], "not proper Unicode"),
        (["k", "v", "--pool", "auto"], "made up"),
    ],
)
def test_what_no_host_could_read_is_refused_with_words(
    kvp: Call, words: list[str], says: str, tmp_path: Path
) -> None:
    assert says in kvp("set", *words, status=1).stderr.decode()
    assert os.listdir(tmp_path) == []


def test_the_largest_key_and_value_are_taken(kvp: Call) -> None:
    kvp("set", "k" * 254, "v" * 1022)
    assert kvp("get", "k" * 254).stdout == b"v" * 1022 + b"\n"


def test_what_is_set_without_a_pool_is_got_without_one_and_the_help_says_which(kvp: Call) -> None:
    kvp("set", "color", "green")
    assert kvp("get", "color").stdout == b"green\n"
    kvp("set", "color", "red", "--pool", "external")
    assert kvp("get", "color").stdout == b"red\n"
    kvp("delete", "color")
    kvp("get", "color", "--pool", "guest", status=1)
    helps = {verb: kvp(verb, "--help").stdout.decode() for verb in ("get", "list", "set", "delete")}
    for verb, default in {"get": "external", "list": "external", "set": "guest", "delete": "guest"}.items():
        assert f"default: {default}" in " ".join(helps[verb].split())


def test_a_fifo_in_a_pools_place_hangs_nobody(kvp: Call, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".kvp_pool_0")
    for words in (["list"], ["get", "k"], ["delete", "k", "--pool", "0"], ["set", "k", "v", "--pool", "0"]):
        assert "not a regular file" in kvp(*words, status=1).stderr.decode()
