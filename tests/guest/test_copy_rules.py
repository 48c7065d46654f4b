# SPDX-License-Identifier: Apache-2.0
"""What files from a host must keep to: rules for directories, quotas, and what must stay free."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hvring.agent import CopyRule, FcopySettings, Settings, standard_services
from hvring.agent.verify import SettingsError
from hvring.daemon.config import reading
from hvring.daemon.config.errors import ConfigError
from hvring.errors import EffectError
from hvring.guest import room
from hvring.guest.files import DirectoryReceiver, Terms
from hvring.guest.part import Part, Wish
from hvring.guest.room import BELOW_RESERVE, OVER_QUOTA, NoRoomError, Usage, count_below
from hvring.pending import settle
from hvring.reasons import Reason
from hvring.status import Status

MIB = 1 << 20
ROOT = Path(__file__).parents[2]


@pytest.fixture
def drop(tmp_path: Path) -> Path:
    folder = tmp_path / "drop"
    folder.mkdir()
    return folder


def copy(receiver: DirectoryReceiver, directory: object, name: str, data: bytes = b"x", **how: Any) -> Path:
    """A whole copy; its bytes are announced unless ``size`` says otherwise."""
    how.setdefault("size", len(data))
    incoming = settle(receiver.start(str(directory), name, **how))
    try:
        for at in range(0, len(data), 6144):
            settle(incoming.write(at, data[at : at + 6144]))
    except EffectError:
        settle(incoming.abort())
        raise
    return Path(settle(incoming.complete()))


def refusal(attempt: Callable[[], object]) -> tuple[int, Reason]:
    with pytest.raises(EffectError) as caught:
        attempt()
    return caught.value.status, caught.value.reason


FULL = (Status.DISK_FULL, Reason.OVER_QUOTA)


def test_the_nearest_rule_counts_and_no_other(drop: Path) -> None:
    for name in ("a", "a/b", "c"):
        (drop / name).mkdir()
    rules = [(drop / "a", Terms(mode=0o600, max_size=5)), (f"{drop}/a/b/", Terms(mode=0o644))]
    receiver = DirectoryReceiver([drop], mode=0o604, rules=rules)
    modes = {}
    for directory in ("", "a", "a/b", "a/b/deep", "c"):
        path = copy(receiver, drop / directory, "f", create_path=True)
        modes[directory] = os.stat(path).st_mode & 0o7777
    assert modes == {"": 0o604, "a": 0o600, "a/b": 0o644, "a/b/deep": 0o644, "c": 0o604}
    assert refusal(lambda: copy(receiver, drop / "a", "g", bytes(6)))[1] is Reason.TOO_LARGE
    assert refusal(lambda: copy(receiver, drop / "a", "g", bytes(6), size=0))[1] is Reason.TOO_LARGE
    copy(receiver, drop / "a/b", "g", bytes(6))


def test_a_rule_is_for_a_directory_whatever_its_name_reads_like(drop: Path) -> None:
    """What would else be the full path of a file above it, with this rule's terms."""
    receiver = DirectoryReceiver([drop], rules=[(drop / "f.txt", Terms(mode=0o600))])
    path = copy(receiver, drop / "f.txt", "f.txt", create_path=True)
    assert path == drop / "f.txt" / "f.txt"
    assert os.stat(path).st_mode & 0o777 == 0o600


def test_a_rule_above_an_allowed_directory_counts_there_too(drop: Path) -> None:
    (drop / "in").mkdir()
    (drop / "old").write_bytes(bytes(10))
    receiver = DirectoryReceiver([drop, drop / "in"], rules=[(drop, Terms(quota=12))])
    assert refusal(lambda: copy(receiver, drop / "in", "f", bytes(3))) == FULL
    copy(receiver, drop / "in", "f", bytes(2))


def test_what_the_host_may_not_do_is_not_done(drop: Path) -> None:
    receiver = DirectoryReceiver([drop], overwrite=False, create_path=False)
    copy(receiver, drop, "f", b"first")
    both = {"overwrite": True, "create_path": True}
    assert refusal(lambda: copy(receiver, drop, "f", **both))[0] == Status.ALREADY_EXISTS
    assert refusal(lambda: copy(receiver, drop / "new", "f", **both)) == (Status.FAIL, Reason.NO_DIRECTORY)
    assert os.listdir(drop) == ["f"]
    assert (drop / "f").read_bytes() == b"first"


@pytest.mark.parametrize("own", [0o077, 0])
def test_no_file_and_no_directory_has_the_bits_of_the_umask(drop: Path, own: int) -> None:
    before = os.umask(own)
    try:
        receiver = DirectoryReceiver([drop], mode=0o666, umask=0o027)
        path = copy(receiver, drop / "made", "f", create_path=True)
        kept = DirectoryReceiver([drop], umask=0o027)
        (drop / "open").touch()
        os.chmod(drop / "open", 0o666)
        copy(kept, drop, "open", overwrite=True)
        plain = DirectoryReceiver([drop], mode=0o666)
        other = copy(plain, drop / "other", "f", create_path=True)
    finally:
        os.umask(before)
    assert os.stat(path).st_mode & 0o777 == 0o640
    assert os.stat(path.parent).st_mode & 0o777 == 0o750
    assert os.stat(drop / "open").st_mode & 0o777 == 0o640
    assert os.stat(other).st_mode & 0o777 == 0o666
    assert os.stat(other.parent).st_mode & 0o777 == 0o755 & ~own


@pytest.mark.root
def test_directories_belong_to_whom_the_files_in_them_belong(drop: Path) -> None:
    if os.geteuid():
        pytest.skip("needs root: gives files away")
    receiver = DirectoryReceiver([drop], owner=(5, 6))
    path = copy(receiver, drop / "a" / "b", "f", create_path=True)
    owners = [(os.stat(each).st_uid, os.stat(each).st_gid) for each in (path, path.parent, drop / "a", drop)]
    assert owners == [(5, 6), (5, 6), (5, 6), (os.geteuid(), os.getegid())]


def test_a_quota_is_for_all_files_below_a_directory(drop: Path) -> None:
    (drop / "sub").mkdir()
    (drop / "sub" / "mine").write_bytes(bytes(400))
    receiver = DirectoryReceiver([drop], quota=1000)
    assert refusal(lambda: copy(receiver, drop, "f", bytes(601))) == FULL
    copy(receiver, drop / "sub", "f", bytes(500))
    assert refusal(lambda: copy(receiver, drop, "g", bytes(101))) == FULL
    copy(receiver, drop / "sub", "f", bytes(600), overwrite=True)  # in whose place it comes does not count
    assert refusal(lambda: copy(receiver, drop, "g", b"x")) == FULL
    (drop / "sub" / "mine").unlink()
    until_counted(lambda: copy(receiver, drop, "g", bytes(400)))
    assert refusal(lambda: copy(receiver, drop / "sub", "h", b"x")) == FULL
    assert sorted(os.listdir(drop)) == ["g", "sub"]


def until_counted(attempt: Callable[[], object]) -> None:
    """A count is good for some times as long as it took."""
    for _ in range(10_000):
        try:
            attempt()
        except EffectError as problem:
            if problem.reason is not Reason.OVER_QUOTA:
                raise
            time.sleep(0.001)
        else:
            return
    raise AssertionError("it was never counted again")


def test_a_file_of_which_no_size_is_known_ends_at_the_quota(drop: Path) -> None:
    (drop / "mine").write_bytes(bytes(100_000))
    receiver = DirectoryReceiver([drop], quota=300_000)
    assert refusal(lambda: copy(receiver, drop, "f", bytes(200_001), size=0)) == FULL
    assert os.listdir(drop) == ["mine"]
    copy(receiver, drop, "f", bytes(200_000), size=0)


def test_each_allowed_directory_has_the_quota_for_itself(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    receiver = DirectoryReceiver(folders, quota=10)
    for folder in folders:
        copy(receiver, folder, "f", bytes(10))
        assert refusal(lambda folder=folder: copy(receiver, folder, "g")) == FULL


def test_a_quota_of_a_directory_that_is_not_there_yet(drop: Path) -> None:
    receiver = DirectoryReceiver([drop], rules=[(drop / "a" / "b", Terms(quota=10))])
    assert refusal(lambda: copy(receiver, drop / "a/b/c", "f", bytes(11), create_path=True)) == FULL
    assert os.listdir(drop) == []
    copy(receiver, drop / "a/b/c", "f", bytes(10), create_path=True)
    assert refusal(lambda: copy(receiver, drop / "a/b", "f")) == FULL
    copy(receiver, drop / "a", "f", bytes(11))


def test_what_is_counted_is_bounded(drop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(20):
        (drop / f"d{n}").mkdir()
        (drop / f"d{n}" / "f").write_bytes(bytes(n))
    (drop / "link").symlink_to("/")
    os.mkfifo(drop / "fifo")
    folder = os.open(drop, os.O_RDONLY)
    try:
        device = os.fstat(folder).st_dev
        assert count_below(folder, device) == sum(range(20))
        monkeypatch.setattr(room, "MOST_COUNTED", 42)
        assert count_below(folder, device) == sum(range(20))
        monkeypatch.setattr(room, "MOST_COUNTED", 41)
        with pytest.raises(NoRoomError, match="42 files and more") as caught:
            count_below(folder, device)
        assert caught.value.errno == OVER_QUOTA
    finally:
        os.close(folder)


@pytest.mark.parametrize("is_slow", [False, True])
def test_a_directory_that_cannot_be_counted_is_not_tried_again_and_again(
    drop: Path, monkeypatch: pytest.MonkeyPatch, is_slow: bool
) -> None:
    for n in range(1100):
        (drop / f"{n}").touch()
    now, looks = [100.0], []

    def clock() -> float:
        now[0] += 6.0 * is_slow
        return now[0]

    def scan(folder: int) -> Any:
        looks.append(folder)
        return really(folder)

    really = os.scandir
    monkeypatch.setattr(os, "scandir", scan)
    monkeypatch.setattr(room.time, "monotonic", clock)
    if not is_slow:
        monkeypatch.setattr(room, "MOST_COUNTED", 1000)
        monkeypatch.setattr(room, "_SHARE", 1.0)
    usage, folder = Usage(), os.open(drop, os.O_RDONLY)
    try:
        for attempt in range(3):
            with pytest.raises(NoRoomError, match="are not counted for a quota"):
                usage.quota(folder, 1 << 40, 0)
            if attempt == 0 and not is_slow:
                usage._known[next(iter(usage._known))].good_until = now[0] + 1
        assert len(looks) == 1
    finally:
        os.close(folder)


def test_a_host_cannot_have_it_counted_all_the_time(drop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    now = [100.0]

    def count(folder: int, device: int) -> int:
        counted.append(now[0])
        now[0] += 0.5
        return 100

    monkeypatch.setattr(room, "count_below", count)
    monkeypatch.setattr(room.time, "monotonic", lambda: now[0])
    usage, folder = Usage(), os.open(drop, os.O_RDONLY)
    try:
        lefts = []
        for _ in range(12):
            quota = usage.quota(folder, 150, 0)
            lefts.append(quota.left)
            quota.take(1)
            now[0] += 0.5
    finally:
        os.close(folder)
    assert counted == [100.0, 105.5]  # ten times as long as it took
    assert lefts == [50, 49, 48, 47, 46, 45, 44, 43, 42, 41, 50, 49]


def free(path: object) -> int:
    space = os.statvfs(str(path))
    return space.f_bavail * space.f_frsize


@pytest.mark.root
def test_a_reserve_stays_free(namespace: Any) -> None:
    small = namespace.mount_tmpfs("small", "-o", "size=16m")
    output = namespace.run(*program(RESERVE), small, timeout=300)
    assert output.splitlines() == [
        "DISK_FULL below_reserve",
        "12582912",
        "DISK_FULL below_reserve",  # also for a file of which no size is known, while it comes
        "DISK_FULL below_reserve",
        "4194304",
        "DISK_FULL disk_full",
        "[]",
    ]


RESERVE = """
import os, sys
from hvring.errors import EffectError
from hvring.guest.files import DirectoryReceiver
from hvring.pending import settle
from hvring.status import Status
MIB, drop = 1 << 20, sys.argv[1]

def copy(size, announced, **terms):
    receiver = DirectoryReceiver([drop], **terms)
    incoming = None
    try:
        incoming = settle(receiver.start(drop, "f", size=announced))
        for at in range(0, size, 32768):
            settle(incoming.write(at, bytes(32768)))
        size = os.path.getsize(settle(incoming.complete()))
        os.unlink(drop + "/f")
        return size
    except EffectError as problem:
        if incoming is not None:
            settle(incoming.abort())
        return f"{Status(problem.status).name} {problem.reason.value}"
    finally:
        receiver.close()

print(copy(12 * MIB + 32768, 12 * MIB + 32768, reserve=4 * MIB))
print(copy(12 * MIB, 12 * MIB, reserve=4 * MIB))
print(copy(16 * MIB, 0, reserve=6 * MIB))
print(copy(4 * MIB + 32768, 4 * MIB + 32768, reserve=MIB, reserve_percent=75.0))
print(copy(4 * MIB, 4 * MIB, reserve=MIB, reserve_percent=75.0))
print(copy(17 * MIB, 17 * MIB, reserve=4 * MIB))
print(os.listdir(drop))
"""


def program(text: str) -> tuple[str, ...]:
    return "env", f"PYTHONPATH={ROOT}", sys.executable, "-c", text


def test_a_reserve_is_looked_at_while_a_file_comes(drop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others fill the disk meanwhile."""
    part = Part.begin(Wish(str(drop), [], "f", size=64 * MIB, reserve=1))
    really = os.fstatvfs

    def full(fd: int) -> os.statvfs_result:
        found = list(really(fd))
        found[4] = 0  # f_bavail
        return os.statvfs_result(found)

    part.write(0, bytes(MIB))
    monkeypatch.setattr(os, "fstatvfs", full)
    with pytest.raises(NoRoomError) as caught:
        for at in range(MIB, 64 * MIB, MIB):
            part.write(at, bytes(MIB))
    assert caught.value.errno == BELOW_RESERVE
    part.abort()
    assert os.listdir(drop) == []


def test_room_for_all_of_a_file_is_taken_when_it_begins(drop: Path) -> None:
    taken = {}
    for allocate in (True, False):
        part = Part.begin(Wish(str(drop), [], "f", size=8 * MIB, allocate=allocate))
        status = os.fstat(part.fd)
        assert status.st_size == 0
        taken[allocate] = status.st_blocks * 512
        part.write(0, bytes(8 * MIB))
        part.prepare(8 * MIB)
        part.abort()
    if not taken[True]:
        pytest.skip("this file system cannot take room for a file")
    assert taken[True] >= 8 * MIB
    assert taken[False] == 0


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (errno.ENOSPC, errno.ENOSPC),
        (errno.EDQUOT, errno.EDQUOT),
        (errno.EFBIG, errno.EFBIG),
        (errno.EOPNOTSUPP, None),
        (errno.ENOSYS, None),
        (errno.EPERM, None),  # a filter for system calls
    ],
)
def test_only_a_want_of_room_keeps_a_file_from_being_begun(
    drop: Path, monkeypatch: pytest.MonkeyPatch, error: int, expected: int | None
) -> None:
    import ctypes

    class Libc:
        class fallocate64:
            argtypes = ()

            def __new__(cls, *_: object) -> Any:
                ctypes.set_errno(error)
                return -1

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Libc)
    if expected is None:
        room.allocate(-1, MIB)
        return
    with pytest.raises(OSError, match=os.strerror(error)) as caught:
        room.allocate(-1, MIB)
    assert caught.value.errno == expected


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errno.EACCES, Status.ACCESS_DENIED),
        (errno.EPERM, Status.ACCESS_DENIED),
        (errno.EROFS, Status.ACCESS_DENIED),
        (errno.ENOSPC, Status.DISK_FULL),
        (errno.EDQUOT, Status.DISK_FULL),
        (errno.EEXIST, Status.ALREADY_EXISTS),
        (errno.ENOENT, Status.FAIL),
        (errno.EIO, Status.FAIL),
    ],
)
def test_a_host_hears_what_its_administrator_can_do_something_about(error: int, status: int) -> None:
    from hvring.guest.copy_under_way import explained

    def step() -> str:
        raise OSError(error, os.strerror(error))

    with pytest.raises(EffectError) as caught:
        explained("f", step, lambda: None)
    assert caught.value.status == status


@pytest.mark.parametrize(
    "terms",
    [
        {"mode": -1},
        {"mode": 0o10000},
        {"umask": 0o1000},
        {"owner": (1, 2**32 - 1)},
        {"max_size": -1},
        {"quota": 1 << 63},
        {"reserve": -1},
        {"reserve_percent": 101.0},
        {"reserve_percent": float("nan")},
    ],
)
def test_terms_that_cannot_be_meant_are_refused(drop: Path, terms: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"no mode|no numbers|bytes|hundred"):
        Terms(**terms)
    with pytest.raises(ValueError, match=r"no mode|no numbers|bytes|hundred"):
        DirectoryReceiver([drop], **terms)


def test_a_rule_for_no_allowed_directory_is_refused(drop: Path) -> None:
    with pytest.raises(ValueError, match="at or below no allowed directory"):
        DirectoryReceiver([drop], rules=[(f"{drop}x", Terms())])
    with pytest.raises(SettingsError, match="at or below no directory of allow"):
        FcopySettings([drop], rules=[CopyRule("/elsewhere")])
    with pytest.raises(SettingsError, match="two rules"):
        FcopySettings([drop], rules=[CopyRule(drop), CopyRule(f"{drop}/./")])
    FcopySettings(rules=[CopyRule("/elsewhere")])  # what is allowed may be on the command line


def test_a_rule_has_what_the_section_says_where_it_says_nothing(drop: Path) -> None:
    rule = CopyRule(drop / "a", mode=0o600, overwrite=False, quota=5)
    own = FcopySettings([drop], mode=0o644, owner=(1, 2), sync=False, reserve=7, quota=9, rules=[rule])
    (service,) = standard_services(Settings(fcopy=own, real=True), ["fcopy"])
    receiver: Any = service._receiver  # type: ignore[attr-defined]
    assert receiver._terms == Terms(0o644, (1, 2), sync=False, reserve=7, quota=9)
    assert receiver._sweeps
    (rehearsed,) = standard_services(Settings(fcopy=own), ["fcopy"])
    assert not rehearsed._receiver._sweeps  # type: ignore[attr-defined]
    ((path, terms),) = receiver._rules
    assert path == [*drop.parts[1:], "a"]
    assert terms == Terms(0o600, (1, 2), overwrite=False, sync=False, reserve=7, quota=5)


def test_the_example_in_the_documentation_is_a_configuration() -> None:
    text = (ROOT / "docs" / "administrators.md").read_text()
    example = text.split("```toml\n")[1].split("```")[0]
    own = reading.configuration(reading.parse(example.encode())).services.fcopy
    terms = dict(own.terms_by_rule())
    assert own.terms() == Terms(umask=0o027, max_size=1 << 30, reserve_percent=10)
    assert terms["/srv/incoming/app"] == replace(
        own.terms(), owner=(1000, 1000), quota=5 << 30, overwrite=False
    )
    assert terms["/srv/images"] == replace(own.terms(), max_size=100 << 30, create_path=False)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            "path = '/srv'\nqouta = 1",
            "4: fcopy.rules[1].qouta: there is no such setting; did you mean quota?",
        ),
        ("mode = 0o600", "2: fcopy.rules[1]: path is missing"),
        ("path = 'srv'", "3: fcopy.rules[1].path: "),
        ("path = '/elsewhere'", "2: fcopy.rules: '/elsewhere' is at or below no directory of allow"),
        ("path = '/srv'\nreserve_percent = 101", "4: fcopy.rules[1].reserve_percent: 101.0 is more than 100"),
    ],
)
def test_what_is_wrong_with_a_rule_is_said_with_its_line(text: str, complaint: str) -> None:
    file = f"fcopy.allow = ['/srv']\n[[fcopy.rules]]\n{text}\n"
    with pytest.raises(ConfigError) as caught:
        reading.configuration(reading.parse(file.encode(), "f"))
    print(caught.value)
    assert f"f:{complaint}" in str(caught.value)
