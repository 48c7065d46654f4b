# SPDX-License-Identifier: Apache-2.0
"""Every way in which hvring's answers differ from the recorded ones; docs/differences.md shows this table.

Offsets are those of the packet payload: the status is at 20, the body begins at 28.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import NamedTuple

ANYTHING = None


class Edit(NamedTuple):
    """The bytes from ``at`` on: Linux' (None: whatever lay there) and hvring's."""

    at: int
    linux: bytes | None
    hvring: bytes


class Difference(NamedTuple):
    """For recordings and requests that match the patterns.  No edits: one of the two does not answer."""

    recordings: tuple[str, ...]
    requests: tuple[str, ...]
    edits: tuple[Edit, ...]
    why: str

    def concerns(self, recording: str, what: str) -> bool:
        return any(fnmatchcase(recording, p) for p in self.recordings) and any(
            fnmatchcase(what, p) for p in self.requests
        )

    def explains(self, linux: bytes | None, hvring: bytes | None) -> set[int]:
        """The offsets at which this accounts for both answers; {-1} for one answer that is missing."""
        if linux is None or hvring is None:
            return {-1} if not self.edits and linux is not hvring else set()
        explained = set()
        for at, theirs, ours in self.edits:
            span = slice(at, at + len(ours))
            if hvring[span] != ours or theirs not in (None, linux[span]):
                return set()
            explained.update(range(at, at + len(ours)))
        return explained


def status(linux: int, hvring: int) -> tuple[Edit, ...]:
    return (Edit(20, linux.to_bytes(4, "little"), hvring.to_bytes(4, "little")),)


def utf16(text: str, size: int | None = None) -> bytes:
    raw = text.encode("utf-16-le")
    return raw if size is None else raw.ljust(size, b"\0")


OK, FAIL, DISK_FULL, NO_MORE_ITEMS = 0, 0x80004005, 0x80070070, 0x80070103

DIFFERENCES = (
    Difference(
        ("shutdown", "timesync", "heartbeat", "kvp", "vss"),
        ("negotiate no common *", "negotiate zero counts", "negotiate counts *"),
        status(OK, FAIL),
        "Nothing was agreed on, and the status should say so; the uio daemon for file copy does it too.",
    ),
    Difference(
        ("heartbeat", "vss"),
        ("negotiate 20 message versions",),
        status(OK, FAIL),
        "As above: none of the twenty is a version of this service.",
    ),
    Difference(
        ("vss",),
        ("negotiate fw 1.0, msg 1.0",),
        status(OK, FAIL),
        "As above: backup knows framework 3.0 only.",
    ),
    Difference(
        ("fcopy-hv_utils-6.1",),
        ("negotiate fw 1.0 only", "negotiate no common message version (9.9)", "negotiate zero counts"),
        status(OK, FAIL),
        "As above: file copy knows framework 3.0 and version 1.1 only.",
    ),
    Difference(
        ("fcopy-*",),
        ("START*",),
        (Edit(1116, ANYTHING, bytes(4)),),
        "Rounding bytes: Linux sends back what lay in the ring, hvring sends zeros.",
    ),
    Difference(
        ("fcopy-*",),
        ("negotiate fw 1.0 only",),
        (Edit(44, ANYTHING, bytes(4)),),
        "Rounding bytes, as above.",
    ),
    Difference(
        ("kvp",),
        ("GET pool 0 'alpha'",),
        (Edit(40, b"\2\0\0\0", b"\x08\0\0\0"), Edit(556, bytes(6), utf16("uno"))),
        "Linux answers every GET with an empty text; hvring with the value.",
    ),
    Difference(
        ("kvp",),
        ("GET pool 2 'OSName'",),
        (
            *status(NO_MORE_ITEMS, OK),
            Edit(40, bytes(4), b"\x14\0\0\0"),
            Edit(556, bytes(18), utf16("Lab Linux")),
        ),
        "Linux lists the automatic keys but does not find them; with hvring what is listed can be got.",
    ),
    Difference(
        ("kvp",),
        ("ENUMERATE pool 0 index *",),
        (Edit(44, b"\2\0\0\0", b"\4\0\0\0"), Edit(560, bytes(2), utf16("5"))),
        "Linux loses 64-bit numbers of type 11, the type that Windows uses; hvring stores them.",
    ),
    Difference(
        ("kvp",),
        ("ENUMERATE pool 0 index *",),
        (Edit(44, b"\2\0\0\0", b"\x0e\0\0\0"), Edit(560, bytes(12), utf16("%TEMP%"))),
        "Linux loses texts of type 2; hvring stores them as they are.",
    ),
    Difference(
        ("kvp",),
        ("ENUMERATE pool 0 index *",),
        (Edit(44, b"\xfe\x07\0\0", b"\0\x08\0\0"), Edit(560 + 2 * 1022, bytes(2), utf16("x"))),
        "Linux cuts the last unit off a value of 1023 units, the longest that fits its field.",
    ),
    Difference(
        ("kvp",),
        ("ENUMERATE pool 0 index *",),
        (Edit(40, b"\xfe\x01\0\0", b"\0\x02\0\0"), Edit(48 + 2 * 254, bytes(2), utf16("k"))),
        "Linux cuts the last unit off a key of 255 units, and DELETE of the shorter key then fails.",
    ),
    Difference(
        ("vss",),
        ("HOT_BACKUP*",),
        (Edit(36, ANYTHING, b"\5\0\0\0"),),
        "Linux means to answer 5, no automatic recovery, and sends back what the host asked with: its driver looks for "
        "the operation in the first byte of the daemon's answer, where the status is (0, never the 2 of HOT_BACKUP). "
        "hvring says what is meant; `capability_flags=None` (`--backup-flags host`) gives Linux' bytes.",
    ),
    Difference(
        ("vss",),
        ("AUTO_RECOVER, 12 500-byte body *",),
        (),
        "Only hvring answers: Linux reads no packet of more than two pages, and loses it.",
    ),
    Difference(
        ("fcopy-*",),
        ("START f.txt in /tmp/fc (absent), *",),
        status(FAIL, OK),
        "Linux creates no directory behind the last slash; hvring creates the whole path when asked to.",
    ),
    Difference(
        ("fcopy-*",),
        ("START, path with backslashes",),
        status(OK, FAIL),
        "Linux makes a directory of that name wherever its daemon runs; hvring takes absolute paths only.",
    ),
    Difference(
        ("fcopy-*",),
        ("START big in /tmp/small *",),
        status(OK, DISK_FULL),
        "The announced size does not fit the disk: hvring says so before the first byte.",
    ),
    Difference(
        ("fcopy-*",),
        ("WRITE 0, 6144 bytes",),
        status(OK, FAIL),
        "Follows from the refused START: there is no file to write to.",
    ),
    Difference(
        ("fcopy-*",),
        ("WRITE 12288, 6144 bytes",),
        status(DISK_FULL, FAIL),
        "Follows from the refused START: there is no file to write to.",
    ),
    Difference(
        ("fcopy-*",),
        ("COMPLETE", "COMPLETE after that"),
        status(OK, FAIL),
        "Linux compares nothing with the announced size. hvring publishes a file only if exactly the announced bytes "
        "came, or, if 0 was announced, if there is no gap; otherwise nothing is left of it.",
    ),
    Difference(
        ("fcopy-uio-*",),
        ("CANCEL*",),
        status(FAIL, OK),
        "The uio daemon does not know CANCEL and leaves the partial file; hvring and hv_utils remove it.",
    ),
    Difference(
        ("fcopy-uio-*",),
        ("WRITE with no file open",),
        status(OK, FAIL),
        "The uio daemon writes to a descriptor that it has closed, or to its standard input.",
    ),
    Difference(
        ("fcopy-uio-*",),
        ("unknown message type 9",),
        (),
        "Only Linux answers (FAIL); hvring is silent, as hv_utils is.",
    ),
)


def record(key: str, value: str) -> tuple[Edit, ...]:
    """Another record than Linux', in an answer to ENUMERATE: sizes, key, value."""
    sizes = b"".join(len(utf16(text) + bytes(2)).to_bytes(4, "little") for text in (key, value))
    return (
        Edit(40, ANYTHING, sizes),
        Edit(48, ANYTHING, utf16(key, 512)),
        Edit(560, ANYTHING, utf16(value, 2048)),
    )


MOVED_UP = (
    "Follows from the two refusals: the records behind them move up, and no record differs but in its index."
)

# What serving over hv_utils' character devices adds to the above (PROTOCOL §10).
DIFFERENCES_UTILS = (
    Difference(
        ("kvp",),
        ("SET pool 0 'delta' *", "SET pool 0 'exp' *"),
        status(OK, NO_MORE_ITEMS),
        "hv_utils loses values of types 11 and 2 on their way to user space: hvring refuses them, Linux' daemon stores "
        "an empty text and says that all is well.",
    ),
    *(
        Difference(("kvp",), ("ENUMERATE pool 0 index *",), record(key, value), MOVED_UP)
        for key, value in (
            ("näme-世😀", "€ 🚀"),
            ("long", "x" * 1022),
            ("k" * 254, "v"),
            ("nonul", "v"),
        )
    ),
    Difference(
        ("kvp",),
        ("ENUMERATE pool 0 index *",),
        (
            *status(OK, NO_MORE_ITEMS),
            Edit(36, ANYTHING, bytes(12)),
            Edit(48, ANYTHING, bytes(512)),
            Edit(560, ANYTHING, bytes(2048)),
        ),
        "Follows from the two refusals: there are two records less.",
    ),
)

SHOWN = 36  # bytes of an edit


def shown(data: bytes | None) -> str:
    """As a cell of the table has it."""
    if data is None:
        return "any"
    if len(data) <= SHOWN:
        return f"`{data.hex()}`"
    text = data.rstrip(b"\0")
    if not text:
        return f"{len(data)} zeros"
    return f"`{text[:SHOWN].hex()}`" + ("…" if len(text) > SHOWN else "") + f" in {len(data)} bytes"


def render(differences: tuple[Difference, ...] = DIFFERENCES) -> str:
    """A table of docs/differences.md."""
    lines = ["| Recording | Request | At | Linux | hvring | Why |", "|---|---|---|---|---|---|"]
    for d in differences:
        requests = ", ".join(f"`{r}`" for r in d.requests)
        at = "<br>".join(str(e.at) for e in d.edits) or "-"
        theirs = "<br>".join(shown(e.linux) for e in d.edits) or "-"
        ours = "<br>".join(shown(e.hvring) for e in d.edits) or "-"
        recordings = ", ".join(f"`{r}`" for r in d.recordings)
        lines.append(f"| {recordings} | {requests} | {at} | {theirs} | {ours} | {d.why} |")
    return "\n".join(lines) + "\n"
