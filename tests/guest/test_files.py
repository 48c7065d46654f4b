# SPDX-License-Identifier: Apache-2.0
"""Files from a host that is not trusted."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from hvring.errors import EffectError
from hvring.guest.files import DirectoryReceiver, Incoming
from hvring.pending import settle
from hvring.status import Status

ROOT = Path(__file__).parents[2]


@pytest.fixture
def drop(tmp_path: Path) -> Path:
    folder = tmp_path / "drop"
    folder.mkdir()
    return folder


class Settled:
    """A receiver for a test that may block."""

    def __init__(self, receiver: DirectoryReceiver) -> None:
        self.receiver = receiver

    def start(self, directory: str, name: str, **how: Any) -> SettledCopy:
        return SettledCopy(settle(self.receiver.start(directory, name, **how)))


class SettledCopy:
    def __init__(self, incoming: Incoming) -> None:
        self.incoming = incoming

    def write(self, offset: int, data: bytes | memoryview) -> None:
        settle(self.incoming.write(offset, data))

    def complete(self) -> str:
        return settle(self.incoming.complete())

    def abort(self) -> None:
        settle(self.incoming.abort())


@pytest.fixture
def receiver(drop: Path) -> Iterator[Settled]:
    receiver = DirectoryReceiver([drop])
    yield Settled(receiver)
    receiver.close()


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def status_of(attempt: Callable[[], object]) -> int:
    with pytest.raises(EffectError) as caught:
        attempt()
    return caught.value.status


def test_a_file_appears_complete_and_not_before(receiver: Settled, drop: Path) -> None:
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
    receiver = Settled(DirectoryReceiver([drop], mode=0o600, sync=False, max_size=10))
    incoming = receiver.start(str(drop), "f", size=10)
    incoming.write(0, bytes(10))
    assert status_of(lambda: incoming.write(10, b"x")) == Status.FAIL
    assert os.stat(incoming.complete()).st_mode & 0o7777 == 0o600
    assert status_of(lambda: receiver.start(str(drop), "g", size=11)) == Status.FAIL


def test_with_nothing_allowed_everything_is_refused(drop: Path) -> None:
    assert status_of(lambda: Settled(DirectoryReceiver()).start(str(drop), "f")) == Status.FAIL
    assert names(drop) == []


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/b", "/etc/passwd", "a\\b", "a\0b", "\ud800", "a\udcff", "x" * 256, ".hvring-0.part"],
)
def test_names_that_are_not_plain_are_refused(receiver: Settled, drop: Path, name: str) -> None:
    assert status_of(lambda: receiver.start(str(drop), name, overwrite=True, create_path=True)) == Status.FAIL
    assert names(drop) == []


@pytest.mark.parametrize(
    ("directory", "status"),
    [
        ("", Status.FAIL),  # no absolute path, or none that is plain
        ("drop", Status.FAIL),
        ("/", Status.ACCESS_DENIED),
        ("/etc", Status.ACCESS_DENIED),
        ("{drop}x", Status.ACCESS_DENIED),
        ("{drop}/..", Status.FAIL),
        ("{drop}/../drop", Status.FAIL),
        ("{drop}/sub/../..", Status.FAIL),
        ("{drop}/./../other", Status.FAIL),
        ("{drop}/a\0b", Status.FAIL),
        ("{drop}/\udc80", Status.FAIL),
        ("C:\\drop", Status.FAIL),
        ("{drop}/a\\..\\b", Status.FAIL),
    ],
)
def test_directories_outside_the_allowed_ones_are_refused(
    receiver: Settled, drop: Path, directory: str, status: int
) -> None:
    directory = directory.format(drop=drop)
    assert status_of(lambda: receiver.start(directory, "f", overwrite=True, create_path=True)) == status
    assert names(drop.parent) == ["drop"]
    assert names(drop) == []


def test_the_nearest_allowed_directory_counts(drop: Path) -> None:
    (drop / "sub").mkdir()
    receiver = Settled(DirectoryReceiver([drop / "sub", f"{drop}//./"]))
    for directory in (f"{drop}/", f"{drop}/sub/./", f"//{drop}/sub//deep"):
        receiver.start(directory, "f", create_path=True).complete()
    assert names(drop) == ["f", "sub"]
    assert names(drop / "sub") == ["deep", "f"]


def test_missing_directories_are_made_only_on_request(receiver: Settled, drop: Path) -> None:
    directory = f"{drop}/a/b/c"
    assert status_of(lambda: receiver.start(directory, "f")) == Status.FAIL
    assert names(drop) == []
    incoming = receiver.start(directory, "f", create_path=True)
    incoming.write(0, b"x")
    assert incoming.complete() == f"{directory}/f"
    assert os.stat(f"{drop}/a").st_mode & 0o777 == 0o755 & ~current_umask()
    receiver.start(directory, "g").complete()


def test_links_below_the_allowed_directory_are_not_followed(
    receiver: Settled, drop: Path, tmp_path: Path
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
            assert (
                status_of(lambda start=start, c=create: receiver.start(start, "f", create_path=c))
                == Status.FAIL
            )
    assert names(outside) == []
    assert names(drop / "inside") == ["up"]
    receiver.start(f"{drop}/inside", "f").complete()
    assert names(drop / "inside") == ["f", "up"]


def test_a_file_is_not_a_directory(receiver: Settled, drop: Path) -> None:
    (drop / "file").write_text("x")
    assert status_of(lambda: receiver.start(f"{drop}/file", "f")) == Status.FAIL
    assert status_of(lambda: receiver.start(f"{drop}/file/deep", "f", create_path=True)) == Status.FAIL


def test_a_link_at_the_target_is_replaced_and_what_it_points_to_stays(
    receiver: Settled, drop: Path, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (drop / "f").symlink_to(victim)
    assert status_of(lambda: receiver.start(str(drop), "f")) == Status.ALREADY_EXISTS
    incoming = receiver.start(str(drop), "f", overwrite=True)
    incoming.write(0, b"new")
    incoming.complete()
    assert victim.read_text() == "precious"
    assert not (drop / "f").is_symlink()
    assert (drop / "f").read_text() == "new"


def test_an_existing_file_is_kept_unless_it_may_be_overwritten(receiver: Settled, drop: Path) -> None:
    (drop / "f").write_text("old and long")
    assert status_of(lambda: receiver.start(str(drop), "f")) == Status.ALREADY_EXISTS
    assert (drop / "f").read_text() == "old and long"
    incoming = receiver.start(str(drop), "f", overwrite=True)
    incoming.write(0, b"new")
    assert (drop / "f").read_text() == "old and long"
    incoming.complete()
    assert (drop / "f").read_text() == "new"


def test_a_file_that_appears_meanwhile_is_not_overwritten(receiver: Settled, drop: Path) -> None:
    incoming = receiver.start(str(drop), "f")
    incoming.write(0, b"from the host")
    (drop / "f").write_text("mine")
    assert status_of(incoming.complete) == Status.ALREADY_EXISTS
    assert (drop / "f").read_text() == "mine"
    assert names(drop) == ["f"]


def test_a_directory_is_never_overwritten(receiver: Settled, drop: Path) -> None:
    (drop / "d").mkdir()
    assert status_of(lambda: receiver.start(str(drop), "d", overwrite=True)) == Status.FAIL
    assert status_of(lambda: receiver.start(str(drop), "d")) == Status.ALREADY_EXISTS


def test_an_aborted_file_leaves_nothing_and_is_over(receiver: Settled, drop: Path) -> None:
    incoming = receiver.start(str(drop), "f")
    incoming.write(0, b"x")
    incoming.abort()
    incoming.abort()
    assert names(drop) == []
    assert status_of(lambda: incoming.write(0, b"x")) == Status.FAIL
    assert status_of(incoming.complete) == Status.FAIL


def test_after_completion_abort_does_not_touch_the_file(receiver: Settled, drop: Path) -> None:
    incoming = receiver.start(str(drop), "f")
    incoming.complete()
    incoming.abort()
    assert names(drop) == ["f"]
    assert status_of(incoming.complete) == Status.FAIL


@pytest.mark.parametrize("offset", [-1, 1 << 63, (1 << 64) - 1, (1 << 63) - 1, 1 << 62])
def test_absurd_offsets_fail(receiver: Settled, drop: Path, offset: int) -> None:
    incoming = receiver.start(str(drop), "f")
    assert status_of(lambda: incoming.write(offset, b"x")) == Status.FAIL
    incoming.abort()
    assert names(drop) == []


def test_descriptors_are_all_given_back(receiver: Settled, drop: Path) -> None:
    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    receiver.start(str(drop), "f").complete()
    before = open_files()  # with the socket to the process that goes on
    receiver.start(str(drop), "e").complete()
    receiver.start(str(drop), "f", overwrite=True).abort()
    for directory, name in ((drop, "f"), (drop, "x" * 256), (f"{drop}/no", "f"), (drop, "..")):
        with pytest.raises(EffectError):
            receiver.start(str(directory), name)
    assert open_files() == before


SMALL_DISK = """
import os, sys
from hvring.errors import EffectError
from hvring.guest.files import DirectoryReceiver
from hvring.pending import settle
drop = sys.argv[1]
receiver = DirectoryReceiver([drop])
def status(attempt, *arguments, **more):
    try:
        settle(attempt(*arguments, **more))
    except EffectError as problem:
        return hex(problem.status)
print(status(receiver.start, drop, "f", size=2 << 20))
incoming = settle(receiver.start(drop, "f", size=0))
print(status(incoming.write, 0, bytes(512 << 10)), status(incoming.write, 512 << 10, bytes(1 << 20)))
settle(incoming.abort())
print(os.listdir(drop))
incoming = settle(receiver.start(drop, "f", size=0))
def all_in_order():
    for at in range(0, 2 << 20, 4096):
        settle(incoming.write(at, bytes(4096)))
print(status(all_in_order), status(incoming.complete))
print(os.listdir(drop))
settle(receiver.start(drop, "h", size=1000 << 10)).abort()
settle(settle(receiver.start(drop, "g", size=0)).complete())
print(os.listdir(drop))
"""


@pytest.mark.root
def test_a_full_disk_is_told_as_such_and_cleaned_up(namespace: Any) -> None:
    small = namespace.mount_tmpfs("small", "-o", "size=1m")
    output = namespace.run("env", f"PYTHONPATH={ROOT}", sys.executable, "-c", SMALL_DISK, small)
    full = hex(Status.DISK_FULL)
    assert output.splitlines() == [full, f"None {full}", "[]", f"{full} {full}", "[]", "['g']"]


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize(
    ("directory", "name", "arrives"),
    [
        ("new/Test.txt", "Test.txt", "new/Test.txt"),  # the full path, as Copy-VMFile documents it
        ("Test.txt", "Test.txt", "Test.txt"),
        ("Other.txt", "Test.txt", "Other.txt"),
        ("is/Test.txt", "Test.txt", "is/Test.txt"),
        ("is", "Test.txt", "is/Test.txt"),  # a directory that exists
        ("is/", "Test.txt", "is/Test.txt"),
        ("is", "is", "is/is"),
        ("is.txt", "Test.txt", "is.txt/Test.txt"),
        ("new", "Test.txt", "new/Test.txt"),  # one that reads like a directory
        ("new/Test.txt/", "Test.txt", "new/Test.txt/Test.txt"),  # or says that it is one
        ("new/Test", "Test", "new/Test"),
        ("", "Test.txt", "Test.txt"),
    ],
)
def test_a_destination_is_a_directory_or_the_full_path_of_the_file(
    receiver: Settled, drop: Path, directory: str, name: str, arrives: str
) -> None:
    (drop / "is").mkdir()
    (drop / "is.txt").mkdir()
    incoming = receiver.start(f"{drop}/{directory}", name, create_path=True, size=1)
    incoming.write(0, b"x")
    assert incoming.complete() == f"{drop}/{arrives}"
    assert (drop / arrives).read_bytes() == b"x"


def test_a_full_path_obeys_the_flags(receiver: Settled, drop: Path) -> None:
    full = f"{drop}/Test.txt"
    assert status_of(lambda: receiver.start(f"{drop}/new/Test.txt", "Test.txt")) == Status.FAIL
    receiver.start(full, "Test.txt").complete()
    assert status_of(lambda: receiver.start(full, "Test.txt", create_path=True)) == Status.ALREADY_EXISTS
    incoming = receiver.start(full, "Test.txt", overwrite=True)
    incoming.write(0, b"new")
    incoming.complete()
    assert (drop / "Test.txt").read_text() == "new"
    assert tree(drop) == ["Test.txt"]


@pytest.mark.parametrize(
    ("size", "chunks"),
    [(100, [(0, 50)]), (1, [(0, 2)]), (12, [(6, 6)]), (12, []), (1, [(1 << 40, 1)]), (0, [(1 << 40, 1)])],
)
def test_a_file_that_is_not_whole_never_appears(
    receiver: Settled, drop: Path, size: int, chunks: list[tuple[int, int]]
) -> None:
    incoming = receiver.start(f"{drop}/made", "f", create_path=True, size=size)
    for offset, count in chunks:
        with suppress(EffectError):
            incoming.write(offset, bytes(count))
    assert status_of(incoming.complete) == Status.FAIL
    assert tree(drop) == []


@pytest.mark.parametrize("end", ["abort", "refused", "long", "incomplete"])
def test_directories_that_were_made_for_nothing_are_removed_and_others_stay(
    receiver: Settled, drop: Path, end: str
) -> None:
    (drop / "p").mkdir()
    directory = f"{drop}/p/q/r"
    if end == "refused":
        assert (
            status_of(lambda: receiver.start(directory, "f", create_path=True, size=1 << 60))
            == Status.DISK_FULL
        )
    elif end == "long":
        assert status_of(lambda: receiver.start(directory, "f" * 256, create_path=True)) == Status.FAIL
        long = f"{directory}/{'u' * 256}"
        assert status_of(lambda: receiver.start(long, "f", create_path=True)) == Status.FAIL
    elif end == "incomplete":
        assert status_of(receiver.start(directory, "f", create_path=True, size=1).complete) == Status.FAIL
    else:
        receiver.start(directory, "f", create_path=True).abort()
    assert tree(drop) == ["p"]
    incoming = receiver.start(directory, "f", create_path=True)
    Path(directory, "somebody else's").touch()
    incoming.abort()
    assert tree(drop) == ["p", "p/q", "p/q/r", "p/q/r/somebody else's"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o755, 0o444, 0o4755])
def test_a_file_keeps_its_mode_when_it_is_replaced(receiver: Settled, drop: Path, mode: int) -> None:
    (drop / "f").touch()
    os.chmod(drop / "f", mode)
    receiver.start(str(drop), "f", overwrite=True).complete()
    # All but the right to run as the file's owner: the contents are the host's now.
    assert os.stat(drop / "f").st_mode & 0o7777 == mode & 0o777
    configured = Settled(DirectoryReceiver([drop], mode=0o604))
    configured.start(str(drop), "f", overwrite=True).complete()
    assert os.stat(drop / "f").st_mode & 0o7777 == 0o604


def test_what_replaces_no_file_has_the_usual_mode(receiver: Settled, drop: Path) -> None:
    os.mkfifo(drop / "f", 0o666)
    receiver.start(str(drop), "f", overwrite=True).complete()
    assert os.stat(drop / "f").st_mode == 0o100640


@pytest.mark.root
def test_a_file_keeps_its_owner_when_it_is_replaced(receiver: Settled, drop: Path) -> None:
    if os.geteuid():
        pytest.skip("needs root: gives a file away")
    (drop / "f").touch()
    os.chown(drop / "f", 1234, 4321)
    receiver.start(str(drop), "f", overwrite=True).complete()
    status = os.stat(drop / "f")
    assert (status.st_uid, status.st_gid) == (1234, 4321)
    configured = Settled(DirectoryReceiver([drop], owner=(5, 6)))
    for name in ("f", "g"):
        configured.start(str(drop), name, overwrite=True).complete()
        status = os.stat(drop / name)
        assert (status.st_uid, status.st_gid) == (5, 6)


def test_attributes_are_kept_when_a_file_is_replaced(receiver: Settled, drop: Path) -> None:
    (drop / "f").touch()
    try:
        os.setxattr(drop / "f", "user.note", b"mine")
    except OSError:
        pytest.skip("this file system has no extended attributes")
    receiver.start(str(drop), "f", overwrite=True).complete()
    assert os.getxattr(drop / "f", "user.note") == b"mine"


NO_FIGURE = """
import os, sys
from hvring.guest.files import DirectoryReceiver
from hvring.pending import settle
drop = sys.argv[1]
assert os.statvfs(drop).f_blocks == 0
incoming = settle(DirectoryReceiver([drop]).start(drop, "f", size=6144))
settle(incoming.write(0, bytes(6144)))
print(settle(incoming.complete()), os.path.getsize(drop + "/f"))
"""


@pytest.mark.root
@pytest.mark.parametrize("kind", ["ramfs", "tmpfs"])
def test_a_file_system_that_has_no_figure_for_its_space_is_not_full(namespace: Any, kind: str) -> None:
    options = ("-t", "ramfs") if kind == "ramfs" else ("-t", "tmpfs", "-o", "size=0")
    target = namespace._mount("no-figure", *options, "hvring-test")
    output = namespace.run("env", f"PYTHONPATH={ROOT}", sys.executable, "-c", NO_FIGURE, target)
    assert output == f"{target}/f 6144"
