# SPDX-License-Identifier: Apache-2.0
"""The lab's own parts that need no machine."""

from __future__ import annotations

import io
import runpy
import stat
from pathlib import Path

import pytest
from lab import UnavailableError, cpio, debian, kernels, needs, scenarios, table
from lab.cache import Cache

RELEASES = ["6.1.0-50", "6.12.107+deb13", "6.12.43+deb12", "6.12.94+deb12", "6.12.94+deb13", "7.3.4+deb13"]


@pytest.mark.parametrize(
    ("wanted", "release"),
    [
        ("6.12", "6.12.107+deb13"),
        ("6.12.43", "6.12.43+deb12"),
        ("6.12.94", "6.12.94+deb13"),
        ("6.12.94+deb12", "6.12.94+deb12"),
        ("6.1", "6.1.0-50"),
        ("newest", "7.3.4+deb13"),
    ],
)
def test_a_kernel_is_chosen_by_version_numbers_not_by_text(wanted: str, release: str) -> None:
    assert kernels.choose(wanted, RELEASES) == release


def test_a_kernel_that_is_not_served_is_refused_with_what_there_is() -> None:
    with pytest.raises(UnavailableError, match=r"6\.12\.43"):
        kernels.choose("6.12.4", RELEASES)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "sources.list",
            "# deb http://wrong trixie main\ndeb [arch=amd64] http://right/debian/ bookworm main\n",
        ),
        (
            "sources.list.d/a.list",
            "deb http://other/apt nodistro main\ndeb http://right/debian trixie-updates main\n",
        ),
        (
            "sources.list.d/debian.sources",
            "Types: deb\nURIs: http://secure/debian\nSuites: trixie-security\n\n"
            "Types: deb\nEnabled: no\nURIs: http://off/debian\nSuites: trixie\n\n"
            "# a remark\nTypes: deb deb-src\nURIs: http://right/debian\nSuites: trixie\n trixie-updates\n",
        ),
    ],
)
def test_the_mirror_comes_from_either_form_of_apts_configuration(
    name: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HVRING_LAB_MIRROR", raising=False)
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / name).write_text(text)
    assert debian.mirror(tmp_path) == "http://right/debian"


def test_without_a_debian_mirror_the_lab_is_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HVRING_LAB_MIRROR", raising=False)
    (tmp_path / "sources.list").write_text("deb http://other/ubuntu noble main\n")
    with pytest.raises(UnavailableError, match="HVRING_LAB_MIRROR"):
        debian.mirror(tmp_path)


def test_a_stage_that_fails_leaves_nothing_and_one_that_is_done_is_not_made_again(tmp_path: Path) -> None:
    cache, made = Cache(tmp_path, lambda text: None), []

    def fail(directory: Path) -> None:
        (directory / "half").touch()
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        cache.stage("a/b", "1", fail)
    assert not cache.has("a/b", "1")
    for recipe in ("1", "1", "2"):
        path = cache.stage("a/b", recipe, lambda directory: made.append(directory.mkdir(exist_ok=True)))
        assert {p.name for p in path.iterdir()} == {".made"}
    assert len(made) == 2


def test_an_archive_has_modes_links_and_contents_at_multiples_of_four_and_ends_with_a_trailer(
    tmp_path: Path,
) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/odd").write_bytes(b"12345")
    (tmp_path / "d/odd").chmod(0o751)
    (tmp_path / "empty").touch(0o600)
    (tmp_path / "link").symlink_to("d/odd")
    buffer = io.BytesIO()
    cpio.write_newc(tmp_path, buffer)
    data, at, entries = buffer.getvalue(), 0, []
    while at < len(data):
        head, name_at = data[at : at + 110], at + 110
        assert head[:6] == b"070701"
        mode, size, name_size = (int(head[i : i + 8], 16) for i in (14, 54, 94))
        body = (name_at + name_size + 3) // 4 * 4
        entries.append(
            (data[name_at : name_at + name_size - 1], stat.filemode(mode), data[body : body + size])
        )
        at = (body + size + 3) // 4 * 4
    assert [name for name, _, _ in entries] == [b"d", b"d/odd", b"empty", b"link", b"TRAILER!!!"]
    assert entries[1:4] == [
        (b"d/odd", "-rwxr-x--x", b"12345"),
        (b"empty", "-rw-------", b""),
        (b"link", "lrwxrwxrwx", b"d/odd"),
    ]


def test_a_scenario_goes_before_the_one_it_names_if_both_want_the_same_guest(tmp_path: Path) -> None:
    texts = {
        "a": "RUNS_BEFORE = 'c'",
        "b": "RUNS_BEFORE = 'e'",
        "c": "",
        "d": "RUNS_BEFORE = 'c'\nGUEST = {'cpus': 2}",
        "f": "RUNS_BEFORE = 'c'",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "a_guest.py").write_text("")
    assert scenarios.names(tmp_path) == ["a", "b", "c", "d", "f"]
    groups = scenarios.boots([scenarios.read(name, tmp_path) for name in scenarios.names(tmp_path)])
    assert [[scenario.name for scenario in group] for group in groups] == [["b"], ["f", "a", "c"], ["d"]]


def test_a_kernel_may_have_scenarios_of_its_own() -> None:
    assert scenarios.of_kernel("6.1:smoke,utils", ["a", "b"]) == ("6.1", ["smoke", "utils"])
    assert scenarios.of_kernel("newest", ["a", "b"]) == ("newest", ["a", "b"])
    assert scenarios.of_kernel("a.deb,b.deb:smoke", ["a"]) == ("a.deb,b.deb", ["smoke"])


def test_machines_side_by_side_are_as_many_as_cores_and_memory_allow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meminfo = tmp_path / "meminfo"

    def jobs(cores: int, gigabytes: int, wanted: int | None = None) -> int:
        monkeypatch.setattr(needs.os, "sched_getaffinity", lambda process: set(range(cores)))
        meminfo.write_text(f"MemTotal: 1 kB\nMemAvailable: {gigabytes << 20} kB\n")
        return needs.jobs(wanted, meminfo)

    assert [jobs(cores, 64) for cores in (1, 2, 8)] == [1, 2, 2]
    assert [jobs(8, gigabytes) for gigabytes in (2, 3, 4)] == [1, 1, 2]
    assert jobs(2, 8, wanted=4) == 4
    for gigabytes, wanted in ((1, None), (3, 2)):
        with pytest.raises(UnavailableError, match="memory"):
            jobs(8, gigabytes, wanted)


def test_a_guest_with_an_unknown_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("GUEST = {'cpu': 2}")
    with pytest.raises(ValueError, match="no cpu"):
        scenarios.read("a", tmp_path)


def test_the_table_has_a_column_for_each_kernel_and_says_why() -> None:
    text = table.render(
        [
            table.Row("6.1", "smoke", "boots", "ok", 1.25),
            table.Row("7.3", "smoke", "boots", "FAILED", 3.0, ["no answer"]),
            table.Row("6.1", "smoke", "binds", "skipped", 0.0, ["not before 6.10"]),
        ]
    )
    lines = text.splitlines()
    assert lines[0].split() == ["scenario", "check", "6.1", "7.3"]
    assert lines[1].split() == ["smoke", "boots", "ok", "1.2", "s", "FAILED", "3.0", "s"]
    assert lines[2].split() == ["smoke", "binds", "skipped", "0.0", "s", "-"]
    assert lines[3:] == [
        "FAILED: 7.3, smoke / boots: no answer",
        "skipped: 6.1, smoke / binds: not before 6.10",
    ]


def test_frames_may_come_in_any_pieces() -> None:
    frames = runpy.run_path(str(Path(__file__).parent / "middle" / "frames.py"))
    sent = [frames["Frame"]("O", b"", 1), frames["Frame"]("P", b"payload", 2**64 - 1, True, 11, 2)]
    whole = b"".join(frame.encode() for frame in sent)
    for size in (1, 19, 20, 21, len(whole)):
        waiting, found = bytearray(), []
        for at in range(0, len(whole), size):
            waiting += whole[at : at + size]
            found += frames["take"](waiting)
        assert (found, waiting) == (sent, b"")
