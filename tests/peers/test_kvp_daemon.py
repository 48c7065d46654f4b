# SPDX-License-Identifier: Apache-2.0
"""The in-tree hv_kvp_daemon, unmodified, as an oracle: the same requests to it and to us.

Its kernel device is a socket (daemon_shim.c), its /var/lib a folder of the test in a private mount
namespace. "Us" is a PoolStore, once called directly and once behind the KVP service. They agree on every
answer and on every record up to the NULs that end its texts; DIFFERENCES lists everything else.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvring.errors import EffectError
from hvring.guest import network
from hvring.guest.identity import DomainName, Identity
from hvring.guest.pools import KEY_SIZE, RECORD_SIZE, Pool, PoolStore
from hvring.ic.frame import Frame, MessageType
from hvring.ic.kvp import KvpDelete, KvpEnumerate, KvpGet, KvpItem, KvpOperation, KvpSet, KvpValue
from hvring.pending import settle
from hvring.services.kvp import Kvp
from hvring.status import Status

pytestmark = pytest.mark.root

SHIM = Path(__file__).with_name("daemon_shim.c")
MESSAGE = 7432
REGISTER1 = 100
TIMEOUT = 30
EXTERNAL, GUEST, AUTO, AUTO_EXTERNAL, AUTO_INTERNAL = range(5)
OK, NO_MORE = int(Status.OK), int(Status.NO_MORE_ITEMS)


class Answer(NamedTuple):
    """What a request gave; texts only where the request asks for them and succeeds."""

    status: int
    key: str | None = None
    value: str | None = None


class Store(Protocol):
    """The four requests, whoever answers them."""

    folder: Path

    def set(self, pool: int, key: str, value: str) -> Answer: ...

    def get(self, pool: int, key: str) -> Answer: ...

    def delete(self, pool: int, key: str) -> Answer: ...

    def enumerate(self, pool: int, index: int) -> Answer: ...


class Daemon:
    """hv_kvp_daemon, spoken to as the kernel driver does (PROTOCOL §4.4.7)."""

    def __init__(self, program: Path, shim: Path, var_lib: Path, *namespaces: str) -> None:
        self.folder = var_lib / "hyperv"
        self.folder.mkdir(parents=True)
        self._kernel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._kernel.settimeout(TIMEOUT)
        name = "hostname nowhere.invalid &&" if "--uts" in namespaces else ""
        script = f'mount --bind "$1" /var/lib && {name} LD_PRELOAD="$2" exec "$0" --no-daemon'
        with theirs:
            self._process = subprocess.Popen(
                ["unshare", "--mount", *namespaces, "sh", "-c", script, program, var_lib, shim],
                env={**os.environ, "HVRING_TEST_DEVICE": str(theirs.fileno())},
                pass_fds=[theirs.fileno()],
                stderr=subprocess.DEVNULL,
            )
        hello = self._kernel.recv(MESSAGE)
        if not hello:
            self.close()
            pytest.skip("hv_kvp_daemon does not start in a private mount namespace")
        assert (len(hello), hello[0]) == (MESSAGE, REGISTER1)
        self._kernel.send(struct.pack("<I", REGISTER1) + b"3.1".ljust(MESSAGE - 4, b"\0"))

    def ask(self, operation: int, pool: int, body: bytes) -> tuple[int, bytes]:
        """Status and body of the answer; ConnectionError if the daemon ends."""
        self._kernel.send(bytes([operation, pool, 0, 0]) + body.ljust(MESSAGE - 4, b"\0"))
        answer = self._kernel.recv(MESSAGE)
        if len(answer) != MESSAGE:
            raise ConnectionError("the daemon is gone")
        return struct.unpack_from("<I", answer)[0], answer[4:]

    def set(self, pool: int, key: str, value: str) -> Answer:
        return Answer(self.ask(KvpOperation.SET, pool, pair(key, len(value.encode()) + 1, value))[0])

    def get(self, pool: int, key: str, room: int = 2048) -> Answer:
        status, body = self.ask(KvpOperation.GET, pool, pair(key, room, ""))
        return Answer(status) if status else Answer(status, None, text(body[524:2572]))

    def delete(self, pool: int, key: str) -> Answer:
        raw = key.encode() + b"\0"
        return Answer(self.ask(KvpOperation.DELETE, pool, struct.pack("<I512s", len(raw), raw))[0])

    def enumerate(self, pool: int, index: int) -> Answer:
        status, body = self.ask(KvpOperation.ENUMERATE, pool, struct.pack("<I", index))
        return Answer(status) if status else Answer(status, text(body[16:528]), text(body[528:2576]))

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._kernel.close()


def pair(key: str, value_size: int, value: str) -> bytes:
    raw = key.encode()[:KEY_SIZE]
    size = min(len(raw) + 1, KEY_SIZE)
    return struct.pack("<III512s2048s", 1, size, value_size, raw, value.encode())


def text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode()


class DirectStore:
    """A PoolStore, called directly."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = PoolStore(folder)
        self.store.prepare()

    def set(self, pool: int, key: str, value: str) -> Answer:
        try:
            settle(self.store.set(pool, key, value))
        except EffectError as error:
            return Answer(error.status)
        return Answer(OK)

    def get(self, pool: int, key: str) -> Answer:
        value = settle(self.store.get(pool, key))
        return Answer(NO_MORE) if value is None else Answer(OK, None, value)

    def delete(self, pool: int, key: str) -> Answer:
        return Answer(OK if settle(self.store.delete(pool, key)) else NO_MORE)

    def enumerate(self, pool: int, index: int) -> Answer:
        record = settle(self.store.record(pool, index))
        return Answer(NO_MORE) if record is None else Answer(OK, *record)


class ServiceStore:
    """The same behind the service, spoken to as a host does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        store = PoolStore(folder)
        store.prepare()
        self._service = Kvp(store)

    def ask(self, body: bytes) -> Frame:
        reply = settle(self._service.receive(Frame(MessageType.KVP, body).encode()))
        assert reply is not None
        return Frame.decode(reply.payload)

    def set(self, pool: int, key: str, value: str) -> Answer:
        return Answer(self.ask(KvpSet(pool, key, value).encode()).status)

    def get(self, pool: int, key: str) -> Answer:
        frame = self.ask(KvpGet(pool, key).encode())
        if frame.status:
            return Answer(frame.status)
        return Answer(OK, None, str(KvpValue.decode(frame.body).value))

    def delete(self, pool: int, key: str) -> Answer:
        return Answer(self.ask(KvpDelete(pool, key).encode()).status)

    def enumerate(self, pool: int, index: int) -> Answer:
        frame = self.ask(KvpEnumerate(pool, index).encode())
        if frame.status:
            return Answer(frame.status)
        item = KvpItem.decode(frame.body)
        return Answer(OK, item.key, str(item.value))


@pytest.fixture(scope="module")
def start_daemon(unpack: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Daemon]]:
    """start_daemon(*namespaces) -> a Daemon with empty pools"""
    if os.geteuid() != 0:
        pytest.skip("needs root: the daemon's /var/lib is replaced in a private mount namespace")
    compiler = shutil.which("cc")
    if compiler is None or shutil.which("unshare") is None:
        pytest.skip("needs a C compiler and unshare for the daemon's kernel device")
    program = unpack("hyperv-daemons", "hyperv-daemons") / "usr/sbin/hv_kvp_daemon"
    shim = tmp_path_factory.mktemp("shim") / "daemon_shim.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-Wall", "-Werror", "-o", shim, SHIM, "-ldl"], check=True)
    with contextlib.ExitStack() as running:

        def start(*namespaces: str) -> Daemon:
            one = Daemon(program, shim, tmp_path_factory.mktemp("var-lib"), *namespaces)
            running.callback(one.close)
            return one

        yield start


@pytest.fixture(scope="module")
def daemon(start_daemon: Callable[..., Daemon]) -> Daemon:
    return start_daemon()


@pytest.fixture(scope="module", params=[DirectStore, ServiceStore])
def ours(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return request.param(tmp_path_factory.mktemp("pools"))


def fill(store: Store, image: bytes = b"") -> None:
    """Every pool file gets this content, in place, as another program would do it."""
    for number in range(5):
        with open(store.folder / f".kvp_pool_{number}", "wb") as file:
            file.write(image)


def image(store: Store, pool: int) -> bytes:
    return (store.folder / f".kvp_pool_{pool}").read_bytes()


def meaning(raw: bytes) -> list[tuple[bytes, bytes]]:
    """The whole records, their fields up to the NULs."""
    records = [raw[end - RECORD_SIZE : end] for end in range(RECORD_SIZE, len(raw) + 1, RECORD_SIZE)]
    return [(r[:KEY_SIZE].partition(b"\0")[0], r[KEY_SIZE:].partition(b"\0")[0]) for r in records]


def record(key: str, value: str) -> bytes:
    return struct.pack("512s2048s", key.encode(), value.encode())


letters = st.characters(blacklist_categories=["Cs"], blacklist_characters="\0")
few = st.sampled_from(["a", "b", "ab", "key", "Größe", "\U0001f511"])
keys = (
    few
    | st.text(letters, min_size=1, max_size=12)
    | st.sampled_from(["k" * 255, "é" * 255, "\U0001f511" * 127])
)
values = (
    few
    | st.text(letters, max_size=60)
    | st.sampled_from(["v" * 1023, "é" * 1023, "\U0001f511" * 511, "12345678901"])
)
pools = st.sampled_from([EXTERNAL, GUEST, AUTO_EXTERNAL, AUTO_INTERNAL])
requests = st.lists(
    st.one_of(
        st.tuples(st.just("set"), pools, keys, values),
        st.tuples(st.just("set"), st.just(EXTERNAL), few, values),
        st.tuples(st.just("delete"), st.just(EXTERNAL), keys),
        st.tuples(st.just("get"), st.just(EXTERNAL), keys),
        st.tuples(st.just("enumerate"), pools, st.sampled_from([0, 1, 2, 5, 100, 2**31 - 1])),
    ),
    max_size=25,
)
before = st.lists(st.tuples(few, values), max_size=4, unique_by=lambda item: item[0])
torn = st.sampled_from([0, 0, 1, 512, 2559])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(there=before, tail=torn, requests=requests)
def test_any_requests_get_the_daemons_answers_and_leave_its_records(
    daemon: Daemon, ours: Store, there: list[tuple[str, str]], tail: int, requests: list[tuple[Any, ...]]
) -> None:
    start = b"".join(record(*item) for item in there) + record("torn", "x" * 2047)[:tail]
    fill(daemon, start)
    fill(ours, start)
    for name, *arguments in requests:
        assert getattr(ours, name)(*arguments) == getattr(daemon, name)(*arguments), (name, arguments)
    for pool in range(5):
        theirs, mine = image(daemon, pool), image(ours, pool)
        assert meaning(mine) == meaning(theirs)
        # A file starts clean here, and we keep it so; only a torn end that nobody touched stays.
        clean = b"".join(struct.pack("512s2048s", *item) for item in meaning(mine))
        assert mine in (clean, start)


def test_files_pass_from_one_to_the_other_and_back(daemon: Daemon, ours: Store) -> None:
    fill(daemon)
    fill(ours)
    assert daemon.set(GUEST, "theirs", "1" * 1000) == Answer(OK)
    (ours.folder / ".kvp_pool_1").write_bytes(image(daemon, GUEST))
    assert ours.get(GUEST, "theirs") == Answer(OK, None, "1" * 1000)
    assert ours.set(GUEST, "ours", "2") == ours.set(GUEST, "theirs", "3") == Answer(OK)
    (daemon.folder / ".kvp_pool_1").write_bytes(image(ours, GUEST))
    assert [daemon.enumerate(GUEST, i) for i in range(3)] == [
        Answer(OK, "theirs", "3"),
        Answer(OK, "ours", "2"),
        Answer(NO_MORE),
    ]
    assert daemon.delete(GUEST, "theirs") == Answer(OK)
    assert meaning(image(daemon, GUEST)) == [(b"ours", b"2")]


def test_one_file_serves_both_at_the_same_time(daemon: Daemon) -> None:
    fill(daemon)
    pool = Pool(daemon.folder / ".kvp_pool_0")
    for n in range(50):
        pool.set(f"ours-{n}", str(n))
        assert daemon.set(EXTERNAL, f"theirs-{n}", str(n)) == Answer(OK)
        assert daemon.get(EXTERNAL, f"ours-{n}") == Answer(OK, None, str(n))
        assert pool.get(f"theirs-{n}") == str(n)
        if n % 3 == 0:
            assert pool.delete(f"theirs-{n}")
            assert daemon.delete(EXTERNAL, f"ours-{n}") == Answer(OK)
    expected = [name for n in range(50) if n % 3 for name in (f"ours-{n}", f"theirs-{n}")]
    assert [key for key, _ in pool.items()] == expected


def test_the_automatic_keys_are_the_same(daemon: Daemon) -> None:
    automatic = Identity(domain_name=DomainName(timeout=TIMEOUT)).automatic()
    theirs = [daemon.enumerate(AUTO, index) for index in range(len(automatic) + 1)]
    name = theirs[0].value
    if name is not None and name.startswith("getaddrinfo failed"):  # see DIFFERENCES
        automatic = ((automatic[0][0], name), *automatic[1:])
    assert theirs == [*(Answer(OK, *item) for item in automatic), Answer(NO_MORE)]


def test_every_adapter_is_described_alike_except_for_its_name_servers(daemon: Daemon) -> None:
    for interface in network.interfaces():
        info = network.ip_info(interface.mac)
        assert info is not None
        adapter = interface.mac.encode().ljust(256, b"\0")
        status, body = daemon.ask(KvpOperation.GET_IP, GUEST, adapter)
        theirs = [text(body[at : at + size]) for at, size in ((258, 2048), (2306, 2048), (4354, 1024))]
        assert (status, body[256]) == (OK, info.family)
        assert theirs == [info.addresses, info.subnets, info.gateways]
    status, _ = daemon.ask(KvpOperation.GET_IP, GUEST, b"00:15:5D:09:09:09".ljust(256, b"\0"))
    assert status == Status.FAIL  # where ip_info gives None


@dataclass(frozen=True)
class Difference:
    """``show`` gives what can be seen of it; ``theirs`` and ``ours`` are what is expected to be seen."""

    what: str
    why: str
    show: Callable[[Any], object]
    theirs: object
    ours: object


def after(*steps: tuple[Any, ...], pool: int = EXTERNAL) -> Callable[[Any], object]:
    """The value fields of the pool after some requests, without the NULs that pad them."""

    def show(store: Any) -> object:
        for name, *arguments in steps:
            assert getattr(store, name)(pool, *arguments) == Answer(OK)
        raw = image(store, pool)
        return [raw[n + KEY_SIZE : n + RECORD_SIZE].rstrip(b"\0") for n in range(0, len(raw), RECORD_SIZE)]

    return show


def get_as_the_driver_asks(store: Any) -> object:
    store.set(EXTERNAL, "k", "value")
    return store.get(EXTERNAL, "k", 0) if isinstance(store, Daemon) else store.get(EXTERNAL, "k")


def key_without_room_for_its_end(store: Any) -> object:
    if isinstance(store, ServiceStore):
        return int(Status.INVALID_ARG)  # 256 UTF-16 units are the most that a host can send
    return store.set(EXTERNAL, "k" * 512, "v").status


def unknown_operation(store: Any) -> object:
    if isinstance(store, Daemon):
        return store.ask(9, EXTERNAL, b"")[0]
    if isinstance(store, ServiceStore):
        return store.ask(bytes([9, EXTERNAL]).ljust(2580, b"\0")).status
    return int(Status.NOT_SUPPORTED)  # a PoolStore has no operations by number


def set_while_cloud_init_holds_its_lock(store: Any) -> object:
    with open(store.folder / ".kvp_pool_0", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        return store.set(EXTERNAL, "k", "v").status


def several_records_of_one_key(store: Any) -> object:
    fill(store, record("k", "1") + record("k", "2"))
    assert store.set(EXTERNAL, "k", "set") == Answer(OK)
    assert store.delete(GUEST, "k") == Answer(OK)
    return meaning(image(store, EXTERNAL)), meaning(image(store, GUEST))


def empty_keys(store: Any) -> object:
    fill(store, record("", "") + record("k", "v"))
    return store.set(EXTERNAL, "", "x").status, store.enumerate(GUEST, 0)


DIFFERENCES: Sequence[Difference] = (
    Difference(
        "stale bytes behind a value that became shorter",
        "The daemon copies the new value over the old one; we write whole records, padded with NULs, so that"
        " an old secret does not stay in a file that everybody may read.",
        after(("set", "k", "a long secret"), ("set", "k", "x")),
        [b"x\0long secret"],
        [b"x"],
    ),
    Difference(
        "stale bytes behind the values that move up on DELETE",
        "The daemon moves later records by strcpy, which stops at the NUL; we move whole records.",
        after(("set", "1", "first"), ("set", "2", "the second"), ("set", "3", "third"), ("delete", "1")),
        [b"the second", b"third\0cond"],
        [b"the second", b"third"],
    ),
    Difference(
        "stale bytes in a new record",
        "The daemon does not clear the memory that it adds a record in: what was there before, be it a"
        " deleted record or anything else on its heap, goes into the file.",
        after(("set", "old", "a deleted secret"), ("delete", "old"), ("set", "new", "x")),
        [b"x\0deleted secret"],
        [b"x"],
    ),
    Difference(
        "GET gives an empty value",
        "The driver asks with room for 0 bytes and the daemon copies as many (PROTOCOL §4.4.3); given room,"
        " it finds the value, as every other test here shows.",
        get_as_the_driver_asks,
        Answer(OK, None, ""),
        Answer(OK, None, "value"),
    ),
    Difference(
        "a key of 512 bytes",
        "The daemon stores it without its NUL and later reads past it; we refuse it. The driver cuts keys"
        " at 511 bytes and never sends one.",
        key_without_room_for_its_end,
        OK,
        int(Status.INVALID_ARG),
    ),
    Difference(
        "an unknown operation",
        "The daemon, and so the driver, reports success for what it has not done.",
        unknown_operation,
        OK,
        int(Status.NOT_SUPPORTED),
    ),
    Difference(
        "a change while another program holds a flock",
        "The daemon knows POSIX record locks only, and loses its own at its first fclose(); we wait for"
        " both families of locks, and give up after a while.",
        set_while_cloud_init_holds_its_lock,
        OK,
        int(Status.FAIL),
    ),
    Difference(
        "several records of one key",
        "The daemon gets, changes and deletes the first and leaves the rest; who appends without looking, as"
        " cloud-init does, means the last, and so do we: one record after SET, none after DELETE.",
        several_records_of_one_key,
        ([(b"k", b"set"), (b"k", b"2")], [(b"k", b"2")]),
        ([(b"k", b"set")], []),
    ),
    Difference(
        "an empty key",
        "The daemon stores it like any other, and then cannot tell it from what a truncation without a lock"
        " leaves behind; we refuse it, and do not show what others left of the kind.",
        empty_keys,
        (OK, Answer(OK, "", "")),
        (int(Status.INVALID_ARG), Answer(OK, "k", "v")),
    ),
    # Further differences, each with a test of its own:
    # - The domain name that cannot be found: an error text from the daemon for as long as it runs, the plain
    #   host name from us (below, and tests/guest/test_identity.py).
    # - Name servers and DHCP: the daemon asks shell scripts that the distribution may or may not install; we
    #   read resolv.conf and the addresses' lifetimes (tests/guest/test_network.py).
    # - A pool that does not exist, and a record number from 2**31 on, which the daemon takes for a negative
    #   one: it reads outside of its arrays; NO_MORE_ITEMS from us (below).
    # - A pool of more than 16384 records: the daemon knows no limit; we do (tests/guest/test_pools.py).
    # - Texts that are not UTF-8 in a file: passed on by the daemon, for the driver to fail with; replacement
    #   characters from us (tests/guest/test_pools.py).
)


@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda difference: difference.what)
def test_the_known_differences_are_as_described(
    start_daemon: Callable[..., Daemon], ours: Store, difference: Difference
) -> None:
    fill(ours)
    # A fresh daemon: what stands in its memory shows in its files.
    assert difference.show(start_daemon()) == difference.theirs, difference.why
    assert difference.show(ours) == difference.ours, difference.why


def test_without_a_resolver_the_daemon_reports_an_error_text_and_we_the_host_name(
    start_daemon: Callable[..., Daemon],
) -> None:
    theirs = start_daemon("--uts", "--net").enumerate(AUTO, 0).value
    assert theirs is not None
    assert theirs.startswith("getaddrinfo failed")
    assert Identity().automatic()[0][1].split(".")[0] == socket.gethostname().split(".")[0]


@pytest.mark.parametrize(("pool", "index"), [(7, 0), (EXTERNAL, 2**32 - 1)])
def test_what_may_end_the_daemon_does_not_end_us(
    start_daemon: Callable[..., Daemon], ours: Store, pool: int, index: int
) -> None:
    fill(ours)
    daemon = start_daemon()
    for store in (daemon, ours):
        assert store.set(EXTERNAL, "k", "v") == Answer(OK)
    with contextlib.suppress(ConnectionError, UnicodeDecodeError):
        daemon.enumerate(pool, index)  # what lies outside of its arrays is different in each build
    if isinstance(ours, DirectStore) and pool == 7:
        with pytest.raises(EffectError, match="no pool 7"):
            ours.enumerate(pool, index)
    else:
        assert ours.enumerate(pool, index) == Answer(NO_MORE)


WRITER = """
import os, sys
from hvring.guest.pools import Pool
pool, name, n = Pool(sys.argv[1], timeout=60), sys.argv[2], 0
while n < 30 or not os.path.exists(sys.argv[3]):
    pool.set(f"{name}{n % 30}", f"{name}{n % 30}" * 100)
    n += 1
"""


def test_beside_the_daemon_nothing_is_torn_and_what_it_overwrites_can_be_set_again(
    start_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    """The daemon lets its lock go between reading a pool and writing it anew, so it loses what others store meanwhile.

    Nobody can keep it from that.  What holds: no record is torn or doubled, the daemon loses none to us, and a record
    of ours that went can be seen to have gone, and is there for good once the daemon is quiet.
    """
    daemon = start_daemon()
    fill(daemon)
    over = tmp_path / "over"
    path = daemon.folder / ".kvp_pool_1"
    names = [f"ours-{letter}-" for letter in "abcdefg"]
    ours = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, path, name, over],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        for name in names
    ]
    try:
        for n in range(400):
            assert daemon.set(GUEST, f"theirs-{n % 40}", f"theirs-{n % 40}" * 100) == Answer(OK)
    finally:
        over.touch()
    assert [one.wait(120) for one in ours] == [0] * 7
    pool = Pool(path, timeout=60)
    items = pool.items()
    assert path.stat().st_size % RECORD_SIZE == 0
    assert len(dict(items)) == len(items)
    assert all(value == key * 100 for key, value in items)
    assert {f"theirs-{n}" for n in range(40)} <= dict(items).keys()
    expected = {f"{name}{n}" for name in names for n in range(30)}
    for key in expected - dict(items).keys():
        pool.set(key, key * 100)
    assert daemon.set(GUEST, "last", "last" * 100) == Answer(OK)
    assert dict(pool.items()).keys() == expected | {f"theirs-{n}" for n in range(40)} | {"last"}
