# SPDX-License-Identifier: Apache-2.0
"""Files from a host that is not trusted."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hvring.errors import EffectError
from hvring.guest import files, folders
from hvring.guest.files import ALREADY_EXISTS, DISK_FULL, FAIL, DirectoryReceiver

ROOT = Path(__file__).parents[2]


@pytest.fixture
def drop(tmp_path: Path) -> Path:
    folder = tmp_path / "drop"
    folder.mkdir()
    return folder


@pytest.fixture
def receiver(drop: Path) -> DirectoryReceiver:
    return DirectoryReceiver([drop])


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def status_of(attempt: Callable[[], object]) -> int:
    with pytest.raises(EffectError) as caught:
        attempt()
    return caught.value.status


def test_a_file_appears_complete_and_not_before(receiver: DirectoryReceiver, drop: Path) -> None:
    before = os.umask(0o077)
    try:
        incoming = receiver.start(str(drop), "naïve テスト \U0001f680.txt", size=11)
        incoming.write(6, b"world")
        assert not (drop / "naïve テスト \U0001f680.txt").exists()
        incoming.write(0, memoryview(b"hello "))
        path = incoming.complete()
    finally:
        os.umask(before)
    assert path == str(drop / "naïve テスト \U0001f680.txt")
    assert Path(path).read_bytes() == b"hello world"
    assert os.stat(path).st_mode & 0o7777 == 0o640
    assert names(drop) == [os.path.basename(path)]


def test_mode_and_bound_are_configurable(drop: Path) -> None:
    receiver = DirectoryReceiver([drop], mode=0o600, sync=False, max_size=10)
    incoming = receiver.start(str(drop), "f", size=10)
    incoming.write(0, bytes(10))
    assert status_of(lambda: incoming.write(10, b"x")) == FAIL
    assert os.stat(incoming.complete()).st_mode & 0o7777 == 0o600
    assert status_of(lambda: receiver.start(str(drop), "g", size=11)) == FAIL


def test_with_nothing_allowed_everything_is_refused(drop: Path) -> None:
    assert status_of(lambda: DirectoryReceiver().start(str(drop), "f")) == FAIL
    assert names(drop) == []


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/b", "/etc/passwd", "a\\b", "a\0b", "\ud800", "a\udcff", "x" * 256, ".hvring-0.part"],
)
def test_names_that_are_not_plain_are_refused(receiver: DirectoryReceiver, drop: Path, name: str) -> None:
    assert status_of(lambda: receiver.start(str(drop), name, overwrite=True, create_path=True)) == FAIL
    assert names(drop) == []


@pytest.mark.parametrize(
    "directory",
    [
        "",
        "drop",
        "/",
        "/etc",
        "{drop}x",
        "{drop}/..",
        "{drop}/../drop",
        "{drop}/sub/../..",
        "{drop}/./../other",
        "{drop}/a\0b",
        "{drop}/\udc80",
        "C:\\drop",
        "{drop}/a\\..\\b",
    ],
)
def test_directories_outside_the_allowed_ones_are_refused(
    receiver: DirectoryReceiver, drop: Path, directory: str
) -> None:
    directory = directory.format(drop=drop)
    assert status_of(lambda: receiver.start(directory, "f", overwrite=True, create_path=True)) == FAIL
    assert names(drop.parent) == ["drop"]
    assert names(drop) == []


def test_the_nearest_allowed_directory_counts(drop: Path) -> None:
    (drop / "sub").mkdir()
    receiver = DirectoryReceiver([drop / "sub", f"{drop}//./"])
    for directory in (f"{drop}/", f"{drop}/sub/./", f"//{drop}/sub//deep"):
        receiver.start(directory, "f", create_path=True).complete()
    assert names(drop) == ["f", "sub"]
    assert names(drop / "sub") == ["deep", "f"]


def test_missing_directories_are_made_only_on_request(receiver: DirectoryReceiver, drop: Path) -> None:
    directory = f"{drop}/a/b/c"
    assert status_of(lambda: receiver.start(directory, "f")) == FAIL
    assert names(drop) == []
    incoming = receiver.start(directory, "f", create_path=True)
    incoming.write(0, b"x")
    assert incoming.complete() == f"{directory}/f"
    assert os.stat(f"{drop}/a").st_mode & 0o777 == 0o755 & ~current_umask()
    receiver.start(directory, "g").complete()


@pytest.fixture(params=["openat2", "walk"])
def _both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once with the kernel's openat2, once as on a machine that refuses it."""
    if request.param == "walk":

        def refuse(*_: object) -> int:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

        monkeypatch.setattr(folders, "_open_at_once", refuse)


@pytest.mark.usefixtures("_both_ways")
def test_links_below_the_allowed_directory_are_not_followed(
    receiver: DirectoryReceiver, drop: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (drop / "link").symlink_to(outside)
    (drop / "inside").mkdir()
    (drop / "sideways").symlink_to("inside")
    (drop / "inside" / "up").symlink_to("..")
    for below in ("link", "link/x", "sideways", "inside/up", "inside/up/inside"):
        for create in (False, True):
            start = f"{drop}/{below}"
            assert status_of(lambda start=start, c=create: receiver.start(start, "f", create_path=c)) == FAIL
    assert names(outside) == []
    assert names(drop / "inside") == ["up"]
    receiver.start(f"{drop}/inside", "f").complete()
    assert names(drop / "inside") == ["f", "up"]


@pytest.mark.usefixtures("_both_ways")
def test_a_file_is_not_a_directory(receiver: DirectoryReceiver, drop: Path) -> None:
    (drop / "file").write_text("x")
    assert status_of(lambda: receiver.start(f"{drop}/file", "f")) == FAIL
    assert status_of(lambda: receiver.start(f"{drop}/file/deep", "f", create_path=True)) == FAIL


def test_the_walk_refuses_components_that_are_none(drop: Path) -> None:
    root = os.open(drop, os.O_RDONLY)
    try:
        for part in ("..", ".", "", "a/b"):
            with pytest.raises(OSError, match="Invalid argument"):
                folders.walk_below(root, [part], create=True)
        assert names(drop) == []
    finally:
        os.close(root)


def test_a_link_at_the_target_is_replaced_and_what_it_points_to_stays(
    receiver: DirectoryReceiver, drop: Path, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (drop / "f").symlink_to(victim)
    assert status_of(lambda: receiver.start(str(drop), "f")) == ALREADY_EXISTS
    incoming = receiver.start(str(drop), "f", overwrite=True)
    incoming.write(0, b"new")
    incoming.complete()
    assert victim.read_text() == "precious"
    assert not (drop / "f").is_symlink()
    assert (drop / "f").read_text() == "new"


def test_an_existing_file_is_kept_unless_it_may_be_overwritten(
    receiver: DirectoryReceiver, drop: Path
) -> None:
    (drop / "f").write_text("old and long")
    assert status_of(lambda: receiver.start(str(drop), "f")) == ALREADY_EXISTS
    assert (drop / "f").read_text() == "old and long"
    incoming = receiver.start(str(drop), "f", overwrite=True)
    incoming.write(0, b"new")
    assert (drop / "f").read_text() == "old and long"
    incoming.complete()
    assert (drop / "f").read_text() == "new"


@pytest.mark.parametrize("has_renameat2", [True, False])
def test_a_file_that_appears_meanwhile_is_not_overwritten(
    receiver: DirectoryReceiver, drop: Path, monkeypatch: pytest.MonkeyPatch, has_renameat2: bool
) -> None:
    if not has_renameat2:
        monkeypatch.setattr(folders, "_rename_noreplace", refuse_flag)
    incoming = receiver.start(str(drop), "f")
    incoming.write(0, b"from the host")
    (drop / "f").write_text("mine")
    assert status_of(incoming.complete) == ALREADY_EXISTS
    assert (drop / "f").read_text() == "mine"
    assert names(drop) == ["f"]
    receiver.start(str(drop), "g").complete()
    assert names(drop) == ["f", "g"]


def refuse_flag(*_: object) -> None:
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def test_a_directory_is_never_overwritten(receiver: DirectoryReceiver, drop: Path) -> None:
    (drop / "d").mkdir()
    assert status_of(lambda: receiver.start(str(drop), "d", overwrite=True)) == FAIL
    assert status_of(lambda: receiver.start(str(drop), "d")) == ALREADY_EXISTS


def test_an_aborted_file_leaves_nothing_and_is_over(receiver: DirectoryReceiver, drop: Path) -> None:
    incoming = receiver.start(str(drop), "f")
    incoming.write(0, b"x")
    incoming.abort()
    incoming.abort()
    assert names(drop) == []
    assert status_of(lambda: incoming.write(0, b"x")) == FAIL
    assert status_of(incoming.complete) == FAIL


def test_after_completion_abort_does_not_touch_the_file(receiver: DirectoryReceiver, drop: Path) -> None:
    incoming = receiver.start(str(drop), "f")
    incoming.complete()
    incoming.abort()
    assert names(drop) == ["f"]
    assert status_of(incoming.complete) == FAIL


@pytest.mark.parametrize("offset", [-1, 1 << 63, (1 << 64) - 1, (1 << 63) - 1, 1 << 62])
def test_absurd_offsets_fail(receiver: DirectoryReceiver, drop: Path, offset: int) -> None:
    incoming = receiver.start(str(drop), "f")
    assert status_of(lambda: incoming.write(offset, b"x")) == FAIL
    incoming.abort()
    assert names(drop) == []


def test_descriptors_are_all_given_back(receiver: DirectoryReceiver, drop: Path) -> None:
    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = open_files()
    receiver.start(str(drop), "f").complete()
    receiver.start(str(drop), "f", overwrite=True).abort()
    for directory, name in ((drop, "f"), (drop, "x" * 256), (f"{drop}/no", "f"), (drop, "..")):
        with pytest.raises(EffectError):
            receiver.start(str(directory), name)
    assert open_files() == before


CRASH = """
import os, sys
from hvring.guest.files import DirectoryReceiver
incoming = DirectoryReceiver([sys.argv[1]]).start(sys.argv[1], "crashed")
incoming.write(0, b"half")
print("writing", flush=True)
sys.stdin.read()
os._exit(9)
"""


def test_leftovers_of_a_crash_are_removed_but_files_being_written_are_not(
    receiver: DirectoryReceiver, drop: Path
) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", CRASH, str(drop)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert other.stdout is not None
    assert other.stdout.readline() == b"writing\n"
    own = receiver.start(str(drop), "own")
    (drop / ".hvring-no-link.part").symlink_to("own")
    receiver.start(str(drop), "third").abort()
    assert len(names(drop)) == 3  # the one of the other process, our own, and the link
    other.communicate()
    receiver.start(str(drop), "fourth").abort()
    own.complete()
    assert names(drop) == [".hvring-no-link.part", "own"]


def test_a_new_file_taken_for_a_leftover_before_its_lock_is_made_again(
    receiver: DirectoryReceiver, drop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really_lock = fcntl.flock
    removed: list[str] = []

    def lock(fd: int, operation: int) -> None:
        if operation == fcntl.LOCK_EX and not removed:  # another receiver was faster
            removed.extend(names(drop))
            os.unlink(drop / removed[0])
        really_lock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", lock)
    incoming = receiver.start(str(drop), "f")
    incoming.write(0, b"x")
    incoming.complete()
    assert len(removed) == 1
    assert names(drop) == ["f"]


SMALL_DISK = """
import os, sys
from hvring.errors import EffectError
from hvring.guest.files import DirectoryReceiver
drop = sys.argv[1]
receiver = DirectoryReceiver([drop])
def status(attempt, *arguments, **more):
    try:
        attempt(*arguments, **more)
    except EffectError as problem:
        return hex(problem.status)
print(status(receiver.start, drop, "f", size=2 << 20))
incoming = receiver.start(drop, "f", size=0)
print(status(incoming.write, 0, bytes(512 << 10)), status(incoming.write, 512 << 10, bytes(1 << 20)))
incoming.abort()
print(os.listdir(drop))
receiver.start(drop, "g", size=1000 << 10).complete()
print(os.listdir(drop))
"""


@pytest.mark.root
def test_a_full_disk_is_told_as_such_and_cleaned_up(namespace: Any) -> None:
    small = namespace.mount_tmpfs("small", "-o", "size=1m")
    output = namespace.run("env", f"PYTHONPATH={ROOT}", sys.executable, "-c", SMALL_DISK, small)
    assert output.splitlines() == [hex(DISK_FULL), f"None {hex(DISK_FULL)}", "[]", "['g']"]


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_the_disk_begins_before_the_end_and_what_it_is_told_about_covers_what_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int]] = []

    def advise(_: int, start: int, size: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_DONTNEED
        told.append((start, start + size))
        if len(told) == 2:
            raise OSError(22, "Invalid argument")  # not every file system takes advice

    monkeypatch.setattr(os, "posix_fadvise", advise)
    step = files.WRITE_OUT // 4
    for sync in (False, True):
        incoming = DirectoryReceiver([tmp_path], sync=sync).start(str(tmp_path), f"file {sync}")
        for n in (*range(8), 11, 10, 9, 8, 12):
            incoming.write(n * step, bytes(step))
        incoming.complete()
        assert os.stat(tmp_path / f"file {sync}").st_size == 13 * step
    assert told == [(n * files.WRITE_OUT, (n + 1) * files.WRITE_OUT) for n in range(3)]
