# SPDX-License-Identifier: Apache-2.0
"""Values that are longer than a record may be: the ways in which others split and join them.

=============  ===========================  ============================================================
Convention     keys                         values
=============  ===========================  ============================================================
``ignition``   ``key.0``, ``key.1``, …      parts of the text, as libhvee and Ignition have it
``azure-init`` ``key`` again and again      parts of the text, in the order of the file
``cloud-init`` ``key|0``, ``key|1``, …      JSON objects whose ``msg`` holds parts, counted by ``msg_i``
=============  ===========================  ============================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Final

from hvring.errors import EffectError
from hvring.guest.records import PoolLimitError
from hvring.pools.limits import HOST, Limits

Items = Sequence[tuple[str, str]]

_CLOUD_INIT: Final = 1024 - 8  # bytes of a value, as cloud-init counts
_MESSAGE: Final = '"msg":"'


class Convention(Enum):
    """Whose way."""

    IGNITION = "ignition"
    AZURE_INIT = "azure-init"
    CLOUD_INIT = "cloud-init"


class MissingChunkError(EffectError):
    """There is a later part of a value, but not all before it."""


def split(key: str, value: str, convention: Convention, limits: Limits = HOST) -> list[tuple[str, str]]:
    """The records for ``value``, one at least.  Raises PoolLimitError, also for a value that cannot be split so.

    ``cloud-init`` takes a JSON object with a text ``msg``, which is what it splits.
    """
    match convention:
        case Convention.IGNITION:
            chunks = [(f"{key}.{n}", part) for n, part in enumerate(_parts(value, limits.value))]
        case Convention.AZURE_INIT:
            chunks = [(key, part) for part in _parts(value, limits.value)]
        case Convention.CLOUD_INIT:
            chunks = _split_event(key, value, min(limits.value, _CLOUD_INIT))
    for one in chunks:
        limits.check(*one)
    return chunks


def join(items: Items, key: str, convention: Convention) -> str | None:
    """The value that the records of ``key`` make, None without any.  Raises MissingChunkError.

    The keys of a value are those of :func:`keys`.
    """
    match convention:
        case Convention.IGNITION:
            parts = _numbered(items, f"{key}.")
            return _healed("".join(parts)) if parts else None
        case Convention.AZURE_INIT:
            parts = [value for name, value in items if name == key]
            return _healed("".join(parts)) if parts else None
        case Convention.CLOUD_INIT:
            return _join_event(key, _numbered(items, f"{key}|"))


def keys(items: Items, key: str, convention: Convention) -> set[str]:
    """The keys of the records that :func:`join` would join."""
    if convention is Convention.AZURE_INIT:
        return {name for name, _ in items if name == key}
    prefix = f"{key}." if convention is Convention.IGNITION else f"{key}|"
    return {name for name, _ in items if _number(name, prefix) is not None}


def _number(name: str, prefix: str) -> int | None:
    rest = name[len(prefix) :] if name.startswith(prefix) else ""
    if not (rest.isascii() and rest.isdecimal() and len(rest) < 10) or rest != str(int(rest)):
        return None
    return int(rest)


def _numbered(items: Items, prefix: str) -> list[str]:
    """The values of prefix0, prefix1, …; of several with one key the last counts."""
    found = {n: value for name, value in items if (n := _number(name, prefix)) is not None}
    gap = next((n for n in range(len(found)) if n not in found), None)
    if gap is not None:
        raise MissingChunkError(f"{prefix}{gap} is missing, {prefix}{max(found)} is there")
    return [found[n] for n in range(len(found))]


def _healed(text: str) -> str:
    """A letter whose bytes were split between two parts is a letter again."""
    return text.encode(errors="surrogateescape").decode(errors="surrogateescape")


def _parts(value: str, size: int) -> list[str]:
    """Parts of so many bytes at most, no letter split; at least one."""
    try:
        raw = value.encode()
    except UnicodeEncodeError:
        raise PoolLimitError("the value is not proper Unicode") from None
    parts = []
    start = 0
    while len(raw) - start > size:
        end = start + size
        while raw[end] & 0xC0 == 0x80:
            end -= 1
        if end <= start:
            raise PoolLimitError(f"parts of {size} bytes are too small for a letter")
        parts.append(raw[start:end].decode())
        start = end
    return [*parts, raw[start:].decode()]


def _split_event(key: str, value: str, size: int) -> list[tuple[str, str]]:
    import json

    try:
        event = json.loads(value)
        message = event.pop("msg")
        if not isinstance(message, str):
            raise TypeError
    except (ValueError, AttributeError, KeyError, TypeError):
        raise PoolLimitError('cloud-init splits JSON objects with a text "msg" and nothing else') from None
    event.pop("msg_i", None)
    # cloud-init also cuts amid an escape such as \u00e9, which makes parts that are no JSON by themselves.
    letters = [json.dumps(letter)[1:-1] for letter in message]
    chunks: list[tuple[str, str]] = []
    at = 0
    while at < len(letters) or not chunks:
        head = json.dumps({**event, "msg_i": len(chunks)}, separators=(",", ":"))[:-1] + ","
        room = size - len(head) - len(_MESSAGE) - 2
        end = at
        while end < len(letters) and len(letters[end]) <= room:
            room -= len(letters[end])
            end += 1
        if room < 0 or end == at < len(letters):
            raise PoolLimitError("what the event has beside its message leaves no room for that")
        chunks.append((f"{key}|{len(chunks)}", f'{head}{_MESSAGE}{"".join(letters[at:end])}"}}'))
        at = end
    return chunks


def _join_event(key: str, parts: list[str]) -> str | None:
    """The event as cloud-init would have written it, were it short; its parts are cut even amid an escape."""
    if not parts:
        return None
    import json

    cut = [part.partition(_MESSAGE)[::2] for part in parts]
    try:
        if not all(tail.endswith('"}') for _, tail in cut):
            raise ValueError
        event = json.loads(f'{cut[0][0]}{_MESSAGE}{"".join(tail[:-2] for _, tail in cut)}"}}')
        del event["msg_i"]
    except (ValueError, KeyError):
        raise EffectError(f"the records of {key!r} are none that cloud-init splits") from None
    return json.dumps(event, separators=(",", ":"))
