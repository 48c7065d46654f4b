# SPDX-License-Identifier: Apache-2.0
"""``hvring kvp`` for first boot, for transport and for images: wait, watch, split, export, import, clean."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hvring.cli import main
from hvring.guest import pool_owner
from hvring.guest.pool_owner import RECORD, PoolOwner
from hvring.pools import Pools

ROOT = Path(__file__).parents[2]
OTHER_VM = "11111111-2222-3333-4444-555555555555"

Call = Callable[..., subprocess.CompletedProcess[bytes]]
Start = Callable[..., subprocess.Popen[bytes]]


def command(directory: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "hvring", "kvp", *words[:1], "--pool-dir", str(directory), *words[1:]]


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}


@pytest.fixture
def kvp(tmp_path: Path) -> Call:
    """kvp(verb, *words, status=0, given=b"") with its pools in the test's folder"""

    def run(*words: str, status: int = 0, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        line = command(tmp_path, *words)
        done = subprocess.run(
            line, capture_output=True, input=given, env=ENVIRONMENT, timeout=60, check=False
        )
        assert done.returncode == status, done.stderr
        assert b"Traceback" not in done.stderr
        return done

    return run


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """The same, left running."""
    running = []

    def begin(*words: str) -> subprocess.Popen[bytes]:
        running.append(
            subprocess.Popen(
                command(tmp_path, *words),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=ENVIRONMENT,
            )
        )
        return running[-1]

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def test_a_first_boot_waits_for_its_configuration_in_parts(start: Start, kvp: Call, tmp_path: Path) -> None:
    waiting = start("wait", "ignition.config", "--timeout", "60", "--quiet", "0.4")
    pool = Pools(tmp_path).external
    value = json.dumps({"ignition": {"version": "3.4.0"}, "é": "x" * 3000}, ensure_ascii=False)
    for n in reversed(range(0, len(value), 700)):  # the first one last: nothing can be joined before
        pool.set(f"ignition.config.{n // 700}", value[n : n + 700])
    out, err = waiting.communicate(timeout=60)
    assert (waiting.returncode, err) == (0, b"")
    assert out.decode() == f"{value}\n"
    assert kvp("get", "ignition.config", "--join", "ignition").stdout.decode() == f"{value}\n"
    assert b"no 'never' within 0.01 seconds" in kvp("wait", "never", "--timeout", "0.01", status=1).stderr


def test_each_change_is_a_line_and_hostile_words_stay_on_theirs(start: Start, tmp_path: Path) -> None:
    pool = Pools(tmp_path).external
    pool.set("k", "v")
    for words, told in (
        (("--all",), [b"+ k  v\n", b"+ x\\x1b[2J  \\n- k\n", b"- k\n"]),
        (
            ("--all", "--json"),
            [
                {"key": "k", "value": "v", "was": None},
                {"key": "x\x1b[2J", "value": "\n- k", "was": None},
                {"key": "k", "value": None, "was": "v"},
            ],
        ),
    ):
        watch = start("watch", *words)
        assert watch.stdout is not None
        lines = [watch.stdout.readline()]
        pool.set("x\x1b[2J", "\n- k")
        lines.append(watch.stdout.readline())
        pool.delete("k")
        lines.append(watch.stdout.readline())
        assert [json.loads(line) for line in lines] == told if "--json" in words else lines == told
        watch.kill()
        pool.exchange(None, [("k", "v")])


@pytest.mark.parametrize("way", ["ignition", "azure-init"])
def test_a_long_value_is_refused_split_joined_and_deleted(kvp: Call, way: str) -> None:
    value = "é" * 1500
    assert b"it can be split" in kvp("set", "k", value, status=1).stderr
    kvp("set", "k", value, "--split", way)
    assert kvp("get", "k", "--join", way, "--pool", "guest").stdout.decode() == f"{value}\n"
    assert len(json.loads(kvp("list", "--pool", "guest", "--json").stdout)) == 3
    kvp("delete", "k", "--joined", way)
    kvp("delete", "k", "--joined", way, status=1)
    assert kvp("list", "--pool", "guest").stdout == b""


def test_any_bytes_go_out_and_in_again(kvp: Call, tmp_path: Path) -> None:
    records = [("caf\udce9", "\udcff\udc80"), ("k" * 512, "v" * 2048), ("\x1b", ""), ("k", "1"), ("k", "2")]
    pools = Pools(tmp_path)
    pools.external.exchange(None, records)
    pools.guest.set("ours", "1")
    out = kvp("export").stdout
    assert out.isascii()
    before = {n: (tmp_path / f".kvp_pool_{n}").read_bytes() for n in (0, 1)}
    kvp("clean")
    assert pools.external.items() == pools.guest.items() == []
    for _ in range(2):  # the second time there is nothing to do
        kvp("import", "-", given=out)
        assert {n: (tmp_path / f".kvp_pool_{n}").read_bytes() for n in (0, 1)} == before
    inodes = [(tmp_path / f".kvp_pool_{n}").stat().st_mtime_ns for n in (0, 1)]
    (tmp_path / "file").write_bytes(out)
    kvp("import", str(tmp_path / "file"))
    assert [(tmp_path / f".kvp_pool_{n}").stat().st_mtime_ns for n in (0, 1)] == inodes
    assert kvp("export").stdout == out


def test_an_import_adds_or_replaces_in_the_pools_that_are_named(kvp: Call, tmp_path: Path) -> None:
    pools = Pools(tmp_path)
    pools.guest.set("a", "old")
    pools.guest.set("b", "stays")
    pools.external.set("c", "there")
    document = {"format": "hvring pools 1", "pools": {"guest": [["a", "new"]], "external": [["d", "1"]]}}
    given = json.dumps(document).encode()
    kvp("import", "-", "--pool", "guest", given=given)
    assert dict(pools.guest.items()) == {"a": "new", "b": "stays"}
    assert dict(pools.external.items()) == {"c": "there"}
    kvp("import", "-", "--replace", given=given)
    assert (pools.guest.items(), pools.external.items()) == ([("a", "new")], [("d", "1")])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"no", "Expecting value"),
        (b"[]", "no output of"),
        (b'{"pools": {}}', '"format" is to be'),
        (b'{"format": "hvring pools 1", "pools": []}', "no output of"),
        (b'{"format": "hvring pools 1", "pools": {"auto": []}}', "no pool 'auto'"),
        (b'{"format": "hvring pools 1", "pools": {"guest": {}}}', "is no list"),
        (
            b'{"format": "hvring pools 1", "pools": {"guest": [["k", "v"], ["k"]]}}',
            "record 1 of the pool guest",
        ),
        (b'{"format": "hvring pools 1", "pools": {"guest": [["", "v"]]}}', "the key is empty"),
        (b'{"format": "hvring pools 1", "pools": {"guest": [["\\ud800", "v"]]}}', "not proper Unicode"),
        (b"\xff", "codec can't decode"),
        (b"[" * 100000, "nested"),
    ],
)
def test_what_is_no_export_changes_nothing(kvp: Call, tmp_path: Path, text: bytes, says: str) -> None:
    assert says in kvp("import", "-", "--replace", given=text, status=1).stderr.decode()
    assert os.listdir(tmp_path) == []


def fill_on(vm: str, directory: Path) -> None:
    Pools(directory).guest.set("k", "v")
    PoolOwner(directory, lambda: vm).record()


def test_an_image_builder_empties_pools_and_forgets_the_machine(kvp: Call, tmp_path: Path) -> None:
    fill_on(OTHER_VM, tmp_path)
    (tmp_path / ".kvp_pool_0").write_bytes(b"x" * 100)  # a torn record
    kvp("clean")
    assert sorted(os.listdir(tmp_path)) == [".kvp_pool_0", ".kvp_pool_1"]
    assert [(tmp_path / f".kvp_pool_{n}").stat().st_size for n in (0, 1)] == [0, 0]
    assert kvp("clean").stdout == b"the pools are empty\n"


def test_a_copy_of_another_machine_is_told_of_until_something_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process: the firmware of a test machine has no id, or none for everybody."""
    monkeypatch.setattr(pool_owner, "vm_id", lambda: "22222222-2222-3333-4444-555555555555")

    def kvp(verb: str, *words: str) -> tuple[str, str]:
        assert main(["kvp", verb, "--pool-dir", str(tmp_path), *words]) == 0
        return capsys.readouterr()

    fill_on(OTHER_VM, tmp_path)
    out, err = kvp("list", "--pool", "guest")
    assert out == "k  v\n"
    assert OTHER_VM in err
    assert "hvring kvp clean" in err
    kvp("clean", "--record-only")
    assert kvp("list", "--pool", "guest") == ("k  v\n", "")
    assert "nothing was done" in kvp("clean", "--stale")[0]
    assert kvp("list", "--pool", "guest")[0] == "k  v\n"
    fill_on(OTHER_VM, tmp_path)
    assert json.loads(kvp("clean", "--stale", "--json")[0])["stale"] == OTHER_VM
    assert kvp("list", "--pool", "guest") == ("", "")
    assert not (tmp_path / RECORD).exists()


@pytest.mark.parametrize("words", [("get", "key"), ("list",)])
def test_json_has_nothing_in_it_that_a_terminal_would_obey(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "\x9b2J\x7f\u202e\u2028\U000e0001 é"
    Pools(tmp_path).external.set("key", text)
    assert main(["kvp", *words, "--json", "--pool-dir", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert said.rstrip("\n").isprintable()
    assert "é" in said
    assert json.loads(said) == (text if words[0] == "get" else [["key", text]])
