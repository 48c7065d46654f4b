# SPDX-License-Identifier: Apache-2.0
"""One file on its way in, in this process: every call that it makes may fail, and the answer and the disk agree."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hvring.guest import file_worker, folders, leftovers, part
from hvring.guest.file_worker import BEGIN, FIND, KEEP, PREPARE, PUBLISH, REPLY, REQUEST, WRITE, FileWorker
from hvring.guest.leftovers import sweep, sweep_below
from hvring.guest.part import Part, Wish

DATA = b"new contents" * 100


@pytest.fixture
def drop(tmp_path: Path) -> Path:
    folder = tmp_path / "drop"
    folder.mkdir()
    return folder


def tree(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def refuse(number: int) -> Callable[..., Any]:
    def call(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    return call


def without_nameless_files(monkeypatch: pytest.MonkeyPatch) -> None:
    really_open = os.open

    def opened(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return really_open(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", opened)


@pytest.fixture(params=["nameless", "named", "named, no renameat2", "named, no openat2", "no exchange"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the kernel and the file system can do."""
    if request.param.startswith("named"):
        without_nameless_files(monkeypatch)
    if request.param == "named, no renameat2":
        monkeypatch.setattr(folders, "_rename_noreplace", refuse(errno.EINVAL))
    if request.param in ("no exchange", "named, no renameat2"):
        monkeypatch.setattr(folders, "exchange", refuse(errno.EINVAL))
    if request.param == "named, no openat2":
        monkeypatch.setattr(folders, "_open_at_once", refuse(errno.EPERM))  # an old filter for system calls
    return str(request.param)


def serve(wish: Wish, data: bytes = DATA, size: int | None = None, *, is_kept: bool = True) -> bool:
    """A whole copy by a worker in this process; whether the last answer, that to PUBLISH, was OK."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.send(REQUEST.pack(BEGIN, 0) + file_worker.pack(wish))
        ours.send(REQUEST.pack(WRITE, 0) + data)
        ours.send(REQUEST.pack(PREPARE, len(data) if size is None else size))
        ours.send(REQUEST.pack(PUBLISH, 0))
        if is_kept:
            ours.send(REQUEST.pack(KEEP, 0))
        ours.shutdown(socket.SHUT_WR)
        FileWorker(theirs).run()
        errors = [REPLY.unpack_from(ours.recv(4096))[0] for _ in range(4)]
    return errors == [0, 0, 0, 0]


OF_THE_SYSTEM = """open stat fstat fstatvfs mkdir dup fchmod fchown fsync link rename unlink pwrite posix_fadvise
listxattr getxattr setxattr scandir"""
CALLS = (
    *((os, name) for name in OF_THE_SYSTEM.split()),
    (fcntl, "flock"),
    (fcntl, "ioctl"),
    (folders, "_open_at_once"),
    (folders, "_rename_noreplace"),
    (folders, "exchange"),
)


class Fault:
    """The ``number``-th of all calls fails: before it does anything, or ``late``, once it has done it."""

    def __init__(self, number: int, error: int, late: bool) -> None:
        self.number = number
        self.error = error
        self.late = late
        self.calls: list[str] = []

    def wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **more: Any) -> Any:
            self.calls.append(name)
            if len(self.calls) != self.number or (
                self.late and name not in ("link", "rename", "fsync", "exchange")
            ):
                return call(*arguments, **more)
            if self.late:
                call(*arguments, **more)
            raise OSError(self.error, os.strerror(self.error))

        return wrapped


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("error", [errno.EIO, errno.EPERM, errno.ENOSPC, errno.EINVAL])
@pytest.mark.parametrize("case", ["new", "replaced", "in a new directory"])
def test_answer_and_disk_agree_whatever_call_fails(
    tmp_path: Path, way: str, case: str, error: int, late: bool
) -> None:
    failed = 0
    for number in range(1, 200):
        drop = tmp_path / str(number)
        drop.mkdir()
        if case == "replaced":
            (drop / "f").write_bytes(b"old")
            os.chmod(drop / "f", 0o600)
        before = tree(drop)
        below = ["made", "deep"] if case == "in a new directory" else []
        wish = Wish(str(drop), below, "f", overwrite=case == "replaced", create_path=bool(below))
        fault = Fault(number, error, late)
        with pytest.MonkeyPatch.context() as patch:
            for module, name in CALLS:
                patch.setattr(module, name, fault.wrap(name, getattr(module, name)))
            is_ok = serve(wish)
        whole = {"made": None, "made/deep": None, "made/deep/f": DATA} if below else {"f": DATA}
        assert tree(drop) == (whole if is_ok else before), (number, fault.calls[number - 1])
        if case == "replaced":
            assert os.stat(drop / "f").st_mode & 0o077 == 0
        failed += not is_ok
        if len(fault.calls) < number:
            break
    assert is_ok  # the last time, nothing failed
    assert failed > 3 or late


def test_a_descriptor_is_closed_whatever_call_fails(drop: Path, way: str) -> None:
    serve(Wish(str(drop), [], "first"))
    before = len(os.listdir("/proc/self/fd"))
    for number in range(1, 60):
        fault = Fault(number, errno.EIO, late=False)
        with pytest.MonkeyPatch.context() as patch:
            for module, name in CALLS:
                patch.setattr(module, name, fault.wrap(name, getattr(module, name)))
            serve(Wish(str(drop), ["a", "b"], f"f{number}", create_path=True))
        assert len(os.listdir("/proc/self/fd")) == before, fault.calls[number - 1 :]


@pytest.mark.parametrize("moment", ["before the name", "after it"])
@pytest.mark.parametrize(("exists", "overwrite"), [(False, False), (False, True), (True, True)])
def test_whoever_gave_up_before_the_end_gets_no_file(
    drop: Path, way: str, exists: bool, overwrite: bool, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name was given too late, or nobody read that it was: it is taken back, and what was replaced is there."""
    if moment == "before the name":
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        really_publish = Part.publish

        def publish(self: Part) -> None:
            ours.close()
            really_publish(self)

        monkeypatch.setattr(Part, "publish", publish)
    if exists:
        (drop / "f").write_bytes(b"old")
    wish = Wish(str(drop), [] if exists else ["made"], "f", overwrite=overwrite, create_path=True)
    if moment == "before the name":
        with theirs:
            ours.send(REQUEST.pack(BEGIN, 0) + file_worker.pack(wish))
            ours.send(REQUEST.pack(WRITE, 0) + DATA)
            ours.send(REQUEST.pack(PREPARE, len(DATA)))
            ours.send(REQUEST.pack(PUBLISH, 0))
            FileWorker(theirs).run()
    else:
        assert serve(wish, is_kept=False)
    if exists and way in ("no exchange", "named, no renameat2"):
        assert tree(drop) == {"f": DATA}  # where two files cannot change places, the old one is gone
    else:
        assert tree(drop) == ({"f": b"old"} if exists else {})


@pytest.mark.parametrize(("exists", "overwrite"), [(False, False), (False, True), (True, True)])
def test_a_name_that_does_not_reach_the_disk_is_taken_back(
    drop: Path, way: str, exists: bool, overwrite: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    really_sync = os.fsync

    def sync(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        really_sync(fd)

    monkeypatch.setattr(os, "fsync", sync)
    if exists:
        (drop / "f").write_bytes(b"old")
    is_ok = serve(Wish(str(drop), [], "f", overwrite=overwrite))
    if exists and way in ("no exchange", "named, no renameat2"):
        assert is_ok  # it is there, and that is said, with a warning
        assert tree(drop) == {"f": DATA}
    else:
        assert not is_ok
        assert tree(drop) == ({"f": b"old"} if exists else {})


def test_a_directory_that_comes_in_the_place_of_the_old_file_stays_what_it_is(
    drop: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (drop / "f").write_bytes(b"old")
    really_hold = leftovers.hold

    def hold(folder: int, name: str) -> int:
        held = really_hold(folder, name)
        (drop / "f").unlink()
        (drop / "f").mkdir()
        return held

    monkeypatch.setattr(leftovers, "hold", hold)
    assert not serve(Wish(str(drop), [], "f", overwrite=True))
    assert tree(drop) == {"f": None}


def test_the_old_file_is_no_leftover_while_it_can_come_back(drop: Path, way: str) -> None:
    (drop / "f").write_bytes(b"old")
    own = Part.begin(Wish(str(drop), [], "f", overwrite=True))
    own.write(0, DATA)
    own.prepare(len(DATA))
    own.publish()
    before = tree(drop)
    for _ in sweep(os.open(drop, os.O_RDONLY)):
        pass
    assert tree(drop) == before
    own.withdraw()
    own.abort()
    is_gone = way in ("no exchange", "named, no renameat2")
    assert tree(drop) == {"f": DATA if is_gone else b"old"}


@pytest.mark.parametrize("is_there", [False, True])
def test_whether_a_file_has_its_name_is_found_out_when_its_process_is_lost(
    drop: Path, is_there: bool
) -> None:
    (drop / "sub").mkdir()
    (drop / "sub" / ".hvring-1.part").touch()
    (drop / "sub" / "f").write_bytes(DATA)
    status = os.stat(drop / "sub" / "f")
    file = file_worker.FILE.pack(True, status.st_dev, status.st_ino + (not is_there))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        for name in ("f", "none"):
            ours.send(REQUEST.pack(FIND, 0) + file + file_worker.pack_names(str(drop), name, "sub"))
        ours.shutdown(socket.SHUT_WR)
        FileWorker(theirs).run()
        answers = [ours.recv(4096) for _ in range(2)]
    assert answers == [REPLY.pack(0) + (b"found" if is_there else b""), REPLY.pack(0)]
    assert tree(drop) == {"sub": None, "sub/f": DATA}  # and what that process left is gone


def test_a_file_of_another_size_than_was_written_is_not_prepared(drop: Path, way: str) -> None:
    assert not serve(Wish(str(drop), [], "f"), size=len(DATA) + 1)
    assert not serve(Wish(str(drop), [], "f"), size=len(DATA) - 1)
    assert tree(drop) == {}


def test_a_wish_arrives_as_it_was_sent() -> None:
    plain = Wish("/a", [], "f")
    full = Wish(
        *("/\udcff/b", ["c", "ü"], "f", True, True, True),
        size=1 << 63,
        mode=0o600,
        owner=(1, 2),
        umask=0o77,
        sync=False,
        sha256=True,
        allocate=True,
        quota=1 << 62,
        counted=2,
        reserve=1 << 62,
        reserve_percent=99.5,
    )
    for wish in (plain, full, replace(full, counted="/\udcff", quota=0, umask=0)):
        assert file_worker.unpack(file_worker.pack(wish)) == wish


def test_links_below_the_allowed_directory_are_not_followed(drop: Path, way: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (drop / "link").symlink_to(outside)
    (drop / "inside").mkdir()
    (drop / "sideways").symlink_to("inside")
    (drop / "inside" / "up").symlink_to("..")
    before = tree(drop)
    for below in ("link", "link/x", "sideways", "inside/up", "inside/up/inside", "link/f", "inside/up/f"):
        for create in (False, True):
            wish = Wish(str(drop), below.split("/"), "f", create_path=create, may_be_file=below.endswith("f"))
            assert not serve(wish)
    assert tree(outside) == {}
    assert tree(drop) == before
    assert serve(Wish(str(drop), ["inside"], "f"))


def test_the_walk_refuses_components_that_are_none(drop: Path) -> None:
    root = os.open(drop, os.O_RDONLY)
    try:
        for name in ("..", ".", "", "a/b"):
            with pytest.raises(OSError, match="Invalid argument"):
                folders.walk_below(root, [name], [])
        assert tree(drop) == {}
    finally:
        os.close(root)


@pytest.mark.parametrize("error", [errno.EPERM, errno.EACCES, errno.ELOOP, errno.EIO])
def test_an_error_of_one_path_is_no_reason_to_walk_around_it(
    drop: Path, error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EPERM for everything is a filter for system calls; EPERM for this path is an answer."""
    (drop / "sub").mkdir()
    really_open = folders._open_at_once

    def opened(root: int, parts: Any) -> int:
        if parts:
            raise OSError(error, os.strerror(error))
        return really_open(root, parts)

    monkeypatch.setattr(folders, "_open_at_once", opened)
    assert not serve(Wish(str(drop), ["sub"], "f", create_path=True))
    assert tree(drop) == {"sub": None}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_directory_from_which_nothing_can_be_removed_keeps_no_unfinished_file(
    drop: Path, way: str, overwrite: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """chattr +a: a file that needs a second name while it is written, or replaces one, cannot go there."""

    def flags(_: int, __: int, buffer: bytearray) -> int:
        buffer[:4] = (0x20).to_bytes(4, "little")
        return 0

    monkeypatch.setattr(fcntl, "ioctl", flags)
    monkeypatch.setattr(os, "unlink", refuse(errno.EPERM))
    monkeypatch.setattr(os, "rename", refuse(errno.EPERM))
    if overwrite:
        (drop / "f").write_bytes(b"old")
    is_ok = serve(Wish(str(drop), [], "f", overwrite=overwrite))
    assert is_ok == (not way.startswith("named") and not overwrite)
    assert tree(drop) == ({"f": b"old"} if overwrite else {"f": DATA} if is_ok else {})


def test_an_access_list_that_cannot_be_kept_opens_the_file_to_nobody(
    drop: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The group's bits of such a file are those of the list, not of the group."""
    (drop / "f").write_bytes(b"old")
    os.chmod(drop / "f", 0o674)
    monkeypatch.setattr(os, "listxattr", lambda _: ["system.posix_acl_access"])
    monkeypatch.setattr(os, "getxattr", lambda *_: b"list")
    monkeypatch.setattr(os, "setxattr", refuse(errno.EOPNOTSUPP))
    assert serve(Wish(str(drop), [], "f", overwrite=True))
    assert os.stat(drop / "f").st_mode & 0o777 == 0o644


def test_a_group_that_cannot_be_kept_is_shut_out(
    drop: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    really_stat = os.stat

    def stat(path: Any, **more: Any) -> os.stat_result:
        found = list(really_stat(path, **more))
        found[5] = 4321  # st_gid
        return os.stat_result(found)

    (drop / "f").write_bytes(b"old")
    os.chmod(drop / "f", 0o664)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "stat", stat)
        patch.setattr(os, "fchown", refuse(errno.EPERM))
        serve(Wish(str(drop), [], "f", overwrite=True))
    assert os.stat(drop / "f").st_mode & 0o777 == 0o644


def test_a_new_file_taken_for_a_leftover_before_its_lock_is_made_again(
    drop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_nameless_files(monkeypatch)
    really_lock = fcntl.flock
    removed: list[str] = []

    def lock(fd: int, operation: int) -> None:
        if operation == fcntl.LOCK_EX and not removed:  # another receiver was faster
            removed.extend(os.listdir(drop))
            os.unlink(drop / removed[0])
        really_lock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", lock)
    assert serve(Wish(str(drop), [], "f"))
    assert len(removed) == 1
    assert tree(drop) == {"f": DATA}


def test_leftovers_are_removed_step_by_step_but_files_being_written_are_not(
    drop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(600):
        (drop / f"other-{n}").touch()
    for n in range(3):
        (drop / f".hvring-{n}.part").touch()
    (drop / ".hvring-link.part").symlink_to("other-0")
    os.mkfifo(drop / ".hvring-fifo.part")
    with monkeypatch.context() as patch:
        without_nameless_files(patch)
        own = Part.begin(Wish(str(drop), [], "own"))
    assert own.part is not None
    steps = list(sweep(os.open(drop, os.O_RDONLY)))
    assert len(steps) in (2, 3)  # between which the host's requests have their turn
    assert sum(steps) == 3
    left = {name for name in os.listdir(drop) if name.startswith(".hvring")}
    assert left == {own.part, ".hvring-link.part", ".hvring-fifo.part"}
    own.abort()
    assert not own.is_named


def test_to_begin_a_file_no_directory_is_listed(
    drop: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many files there are: a host may ask for that as often as it likes."""
    for name in ("listdir", "scandir"):
        monkeypatch.setattr(os, name, refuse(errno.EIO))
    Part.begin(Wish(str(drop), ["a", "b"], "f", create_path=True)).abort()


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
    step = part.WRITE_OUT // 4
    for sync in (False, True):
        incoming = Part.begin(Wish(str(tmp_path), [], f"file {sync}", sync=sync))
        for n in (*range(8), 11, 10, 9, 8, 12):
            incoming.write(n * step, bytes(step))
        incoming.prepare(13 * step)
        incoming.publish()
        incoming.end()
        assert os.stat(tmp_path / f"file {sync}").st_size == 13 * step
    assert told == [(n * part.WRITE_OUT, (n + 1) * part.WRITE_OUT) for n in range(3)]


def test_leftovers_below_a_directory_are_removed_and_nothing_else_is_touched(
    drop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = drop / "a" / "b" / "c"
    deep.mkdir(parents=True)
    outside = tmp_path / "outside"
    outside.mkdir()
    (drop / "link").symlink_to(outside)
    for folder in (drop, drop / "a", deep, outside):
        (folder / ".hvring-1.part").write_bytes(b"half")
        (folder / "mine").touch()
    (drop / ".hvring-2.part").touch()
    os.chmod(drop / ".hvring-2.part", 0o444)
    with monkeypatch.context() as patch:
        without_nameless_files(patch)
        own = Part.begin(Wish(str(drop), ["a"], "own"))
    assert sweep_below(str(drop), 60.0) == 4
    left = {*drop.rglob(".hvring*"), *outside.rglob(".hvring*")}
    assert left == {drop / "a" / str(own.part), outside / ".hvring-1.part"}
    own.abort()
    assert all((folder / "mine").exists() for folder in (drop, drop / "a", deep, outside))
    assert sweep_below(str(drop), 60.0) == 0
    with pytest.raises(FileNotFoundError):
        sweep_below(str(drop / "no"), 60.0)


def test_a_sandbox_that_allows_no_priorities_allows_a_sweep(
    drop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "nice", refuse(errno.EPERM))
    (drop / ".hvring-1.part").touch()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.send(REQUEST.pack(file_worker.SWEEP, 60_000) + os.fsencode(drop))
        ours.shutdown(socket.SHUT_WR)
        FileWorker(theirs).run()
        assert ours.recv(4096) == REPLY.pack(0) + b"1"
    assert tree(drop) == {}
