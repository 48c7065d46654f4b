# SPDX-License-Identifier: Apache-2.0
"""The recorded requests against our services: the same answers byte for byte, or an entry in the table.

What was recorded, and from which guest: docs/differences.md.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pytest

from hvring.errors import EffectError
from hvring.guest.files import DirectoryReceiver
from hvring.guest.network import IpInfo
from hvring.guest.pools import PoolStore
from hvring.guest.power import PowerAction, ShutdownOrder
from hvring.ic import Status
from hvring.pending import settle
from hvring.services import Fcopy, Heartbeat, Kvp, Shutdown, TimeSync, Vss

HERE = Path(__file__).parent
DOCS = HERE.parent.parent / "docs" / "differences.md"

_spec = importlib.util.spec_from_file_location("oracle_differences", HERE / "differences.py")
assert _spec is not None
assert _spec.loader is not None
table = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(table)


class Row(NamedTuple):
    what: str
    request: bytes
    answer: bytes | None


def rows(recording: str) -> Iterator[Row]:
    with gzip.open(HERE / "data" / f"{recording}.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            request = bytes.fromhex(row["request"])
            answer = None if row["answer"] is None else bytes.fromhex(row["answer"])
            # The file lacks the rounding bytes of requests; Linux echoed them, so its answer has them.
            gap = -len(request) % 8
            filler = answer[len(request) :] if answer is not None else bytes(gap)
            yield Row(row["what"], request + filler, answer)


class LabPower:
    """The guest can hibernate."""

    def __init__(self) -> None:
        self.orders: list[ShutdownOrder] = []

    def supports(self, action: PowerAction) -> bool:
        return True

    def act(self, order: ShutdownOrder) -> Callable[[], None]:
        return lambda: self.orders.append(order)


class LabClock:
    def now(self) -> int:
        return 1924992000 * 10**9

    def reference(self) -> int | None:
        return 10**9

    def set(self, unix_ns: int) -> None:
        raise EffectError("the recorded answers do not depend on this")


class LabFreezer:
    ready = False
    frozen = False

    def freeze(self) -> None:
        self.frozen = True

    def thaw(self) -> None:
        self.frozen = False


class LabIdentity:
    def automatic(self) -> tuple[tuple[str, str], ...]:
        return (
            ("FullyQualifiedDomainName", "l2guest.example.test"),
            ("IntegrationServicesVersion", "3.1"),
            ("NetworkAddressIPv4", "192.0.2.7"),
            ("NetworkAddressIPv6", "fe80::215:5dff:fe01:203"),
            ("OSBuildNumber", "6.12.107+deb13-cloud-amd64"),
            ("OSName", "Lab Linux"),
            ("OSMajorVersion", "13"),
            ("OSMinorVersion", ""),
            ("OSVersion", "6.12.107+deb13"),
            ("ProcessorArchitecture", "x86_64"),
        )


class LabStore(PoolStore):
    """Real pool files; the guest's name and adapters."""

    ADAPTERS: ClassVar = {
        "00:15:5D:01:02:03": IpInfo(
            3, False, "192.0.2.7;fe80::215:5dff:fe01:203", "255.255.255.0;/64", "192.0.2.1;", ""
        ),
        "00:00:00:00:00:00": IpInfo(0, False, "", "", "", ""),
    }

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, identity=LabIdentity())  # type: ignore[arg-type]

    def ip_info(self, mac: str) -> IpInfo | None:
        return self.ADAPTERS.get(mac)

    def set_ip(self, guid: str, wish: IpInfo) -> None:
        raise EffectError("this machine's network is not changed for a host", Status.NOT_SUPPORTED)

    def adapter(self, guid: str) -> bool:
        return False


class LabReceiver:
    """The real receiver, with the guest's /tmp in a directory of the test; /tmp/small is a disk of 8 kB."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.running = False
        self._receiver = DirectoryReceiver([directory], sync=False)
        (directory / "small").mkdir()

    def start(self, directory: str, name: str, *, size: int = 0, **how: bool) -> Any:
        if not self.running:
            return DirectoryReceiver().start(directory, name, **how)
        if directory == "/tmp/small" and size > 8192:
            raise EffectError("the real receiver asks the file system for its room", Status.DISK_FULL)
        if directory.startswith("/tmp/"):
            directory = str(self.directory) + directory.removeprefix("/tmp")
        return self._receiver.start(directory, name, size=size, **how)


class Guest(NamedTuple):
    """A service over the recorded guest's effects, and what happened to that guest between two rows."""

    service: Any
    before: Callable[[Row], None] = lambda row: None


def vss_guest(_: Path) -> Guest:
    freezer = LabFreezer()

    def before(row: Row) -> None:
        freezer.ready = not row.what.endswith("no daemon")

    return Guest(Vss(freezer), before)


def fcopy_guest(directory: Path) -> Guest:
    receiver = LabReceiver(directory)

    def before(row: Row) -> None:
        receiver.running = not row.what.endswith("no daemon")

    return Guest(Fcopy(receiver), before)


GUESTS: dict[str, Callable[[Path], Guest]] = {
    "shutdown": lambda _: Guest(Shutdown(LabPower())),
    "timesync": lambda _: Guest(TimeSync(LabClock(), mode="step")),
    "heartbeat": lambda _: Guest(Heartbeat()),
    "kvp": lambda directory: Guest(Kvp(LabStore(directory))),
    "vss": vss_guest,
    "fcopy-hv_utils-6.1": fcopy_guest,
    "fcopy-uio-daemon-6.12": fcopy_guest,
}


def replay(recording: str, directory: Path) -> Iterator[tuple[Row, bytes | None]]:
    """Every row with our answer to it."""
    guest = GUESTS[recording](directory)
    for row in rows(recording):
        guest.before(row)
        reply = settle(guest.service.receive(row.request))
        yield row, None if reply is None else reply.payload


def differing(linux: bytes | None, hvring: bytes | None) -> set[int]:
    """Offsets of unequal bytes; -1 stands for a missing answer or one of another length."""
    if linux is None or hvring is None or len(linux) != len(hvring):
        return set() if linux == hvring else {-1}
    return {i for i, (a, b) in enumerate(zip(linux, hvring, strict=True)) if a != b}


def test_every_recording_is_replayed() -> None:
    assert {path.name.removesuffix(".jsonl.gz") for path in (HERE / "data").iterdir()} == set(GUESTS)


@pytest.mark.parametrize("recording", GUESTS)
def test_the_answers_are_those_of_linux_or_explained(recording: str, tmp_path: Path) -> None:
    unexplained = []
    for n, (row, ours) in enumerate(replay(recording, tmp_path)):
        left = differing(row.answer, ours)
        for entry in table.DIFFERENCES:
            if entry.concerns(recording, row.what):
                left -= entry.explains(row.answer, ours)
        if left:
            unexplained.append((n, row.what, sorted(left)[:40]))
    assert unexplained == []


def test_every_entry_of_the_table_is_needed(tmp_path: Path) -> None:
    used: set[int] = set()
    for recording in GUESTS:
        directory = tmp_path / recording
        directory.mkdir()
        for row, ours in replay(recording, directory):
            wrong = differing(row.answer, ours)
            used.update(
                i
                for i, entry in enumerate(table.DIFFERENCES)
                if wrong and entry.concerns(recording, row.what) and wrong & entry.explains(row.answer, ours)
            )
    assert [d for i, d in enumerate(table.DIFFERENCES) if i not in used] == []


def test_every_pattern_of_the_table_matches_a_row() -> None:
    for entry in table.DIFFERENCES:
        words = {row.what for name in GUESTS for row in rows(name)}
        for pattern in entry.requests:
            one = entry._replace(requests=(pattern,))
            assert any(one.concerns(name, what) for name in GUESTS for what in words), pattern


def test_the_documentation_shows_the_table() -> None:
    assert table.render() in DOCS.read_text(encoding="utf-8")


def test_the_record_of_a_real_shutdown_is_answered_before_it_is_let_go(tmp_path: Path) -> None:
    power = LabPower()
    service = Shutdown(power)
    (row,) = (row for row in rows("shutdown") if row.what.startswith("SHUT DOWN"))
    reply = service.receive(row.request)
    assert reply is not None
    assert (reply.payload, power.orders) == (row.answer, [])
    assert reply.then is not None
    reply.then()
    assert [(o.action, o.text) for o in power.orders] == [(PowerAction.OFF, "lab")]
