# SPDX-License-Identifier: Apache-2.0
"""Version negotiation, message type 0: request, answer, and Linux's way of choosing (PROTOCOL §3.4)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from hvring.errors import LyingLengthError, ReplyError, ShortMessageError
from hvring.ic.fields import pack
from hvring.ic.frame import Request, Version
from hvring.status import Status

MAX_VERSIONS: Final = 100  # of each kind in one request
REPLY_SIZE: Final = 16  # counts, reserved, one framework version, one message version

_COUNTS: Final = struct.Struct("<HHI")
_COUNTS_ONLY: Final = struct.Struct("<HH")
_VERSION: Final = struct.Struct("<HH")


class Negotiated(NamedTuple):
    """What both sides agreed on."""

    framework: Version
    version: Version


@dataclass(frozen=True, slots=True)
class NegotiateRequest:
    """What a host offers; the order means nothing to a Linux guest."""

    frameworks: tuple[Version, ...]
    versions: tuple[Version, ...]

    def encode(self) -> bytes:
        """Raises ValueError for over 100 versions of a kind, and for numbers that do not fit."""
        both = (*self.frameworks, *self.versions)
        if max(len(self.frameworks), len(self.versions)) > MAX_VERSIONS:
            raise ValueError(f"more than {MAX_VERSIONS} versions of one kind")
        return _COUNTS.pack(len(self.frameworks), len(self.versions), 0) + b"".join(
            pack(_VERSION, "a negotiation", *v) for v in both
        )

    @classmethod
    def decode(cls, body: bytes) -> NegotiateRequest:
        """Raises ShortMessageError, LyingLengthError for counts over the limit or beyond what came."""
        if len(body) < _COUNTS.size:
            raise ShortMessageError(f"a negotiation of {len(body)} bytes")
        f, m, _ = _COUNTS.unpack_from(body)
        if max(f, m) > MAX_VERSIONS or _COUNTS.size + 4 * (f + m) > len(body):
            raise LyingLengthError(f"{f} + {m} versions in {len(body)} bytes")
        both = [Version(*v) for v in _VERSION.iter_unpack(body[8 : 8 + 4 * (f + m)])]
        return cls(tuple(both[:f]), tuple(both[f:]))


@dataclass(frozen=True, slots=True)
class NegotiateReply:
    """What a guest chose."""

    framework: Version
    version: Version

    def encode(self) -> bytes:
        """The 16 bytes of a guest that agrees."""
        return _COUNTS.pack(1, 1, 0) + _VERSION.pack(*self.framework) + _VERSION.pack(*self.version)

    @classmethod
    def decode(cls, body: bytes) -> NegotiateReply:
        """Raises ShortMessageError, and ReplyError when the guest agreed to nothing (counts not 1 and 1)."""
        if len(body) < REPLY_SIZE:
            raise ShortMessageError(f"a negotiation answer of {len(body)} bytes")
        f, m, _ = _COUNTS.unpack_from(body)
        if (f, m) != (1, 1):
            raise ReplyError(f"the guest agreed to {f} framework and {m} message versions")
        return cls(Version(*_VERSION.unpack_from(body, 8)), Version(*_VERSION.unpack_from(body, 12)))


class _Outcome(NamedTuple):
    """The two version slots as Linux leaves them, agreed on or not."""

    agreed: bool
    framework: Version
    version: Version


def _search(body: bytes, frameworks: Sequence[Version], versions: Sequence[Version]) -> _Outcome:
    """``frameworks`` and ``versions`` newest first; the first that the host offers too wins."""
    f, m = _COUNTS_ONLY.unpack_from(body)
    left_f, left_m = Version(f, 0), Version(m, 0)  # Linux starts its search with the counts in the slots
    try:
        offered = NegotiateRequest.decode(body)
    except (ShortMessageError, LyingLengthError):
        return _Outcome(False, left_f, left_m)
    framework = next((v for v in frameworks if v in offered.frameworks), None)
    if framework is None:
        return _Outcome(False, left_f, left_m)
    version = next((v for v in versions if v in offered.versions), None)
    if version is None:
        return _Outcome(False, framework, left_m)
    return _Outcome(True, framework, version)


def choose(body: bytes, frameworks: Sequence[Version], versions: Sequence[Version]) -> Negotiated | None:
    """What a guest with these versions, newest first, agrees on; None without a match or when broken."""
    if len(body) < _COUNTS_ONLY.size:
        return None
    found = _search(body, frameworks, versions)
    return Negotiated(found.framework, found.version) if found.agreed else None


def answer(
    request: Request, frameworks: Sequence[Version], versions: Sequence[Version]
) -> tuple[bytes | Request, Negotiated | None]:
    """Linux's answer byte for byte, leftovers in a failed one included, but a failed one has status FAIL."""
    body = request.body
    if len(body) < _COUNTS_ONLY.size:
        return request.answer(Status.FAIL), None
    found = _search(body, frameworks, versions)
    count = 1 if found.agreed else 0
    edited = (
        _COUNTS_ONLY.pack(count, count)
        + body[4:8].ljust(4, b"\0")
        + _VERSION.pack(*found.framework)
        + _VERSION.pack(*found.version)
    )
    status = Status.OK if found.agreed else Status.FAIL
    payload = request.answer(status, edited, REPLY_SIZE)
    return payload, Negotiated(found.framework, found.version) if found.agreed else None
