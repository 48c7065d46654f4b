# SPDX-License-Identifier: Apache-2.0
"""Copy a file into the guest (PROTOCOL §4.6)."""

from __future__ import annotations

import asyncio
import io
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from hvring.errors import MessageError
from hvring.host.errors import GuestStatusError, HostError, SourceChangedError
from hvring.host.session import Session
from hvring.host.threads import DaemonThreads
from hvring.host.uninterrupted import uninterrupted
from hvring.ic.fcopy import CHUNK, CancelCopy, CompleteCopy, FcopyFlag, StartCopy, WriteChunk

_BLOCK: Final = 64 * CHUNK  # read from the source at one go

Progress = Callable[[int, int], None]


class Reader(Protocol):
    """What a source must do, as files do: at most ``size`` bytes, none at the end."""

    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class CopyReport:
    """A file that the guest has: its bytes, and the seconds that took."""

    size: int
    seconds: float


class FcopyVerbs:
    """The administrator's verb for file copy."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._one_copy = asyncio.Lock()
        self._threads = DaemonThreads()

    async def copy(
        self,
        source: str | os.PathLike[str] | bytes | Reader,
        directory: str,
        *,
        name: str | None = None,
        size: int | None = None,
        overwrite: bool = False,
        create_path: bool = False,
        progress: Progress | None = None,
    ) -> CopyReport:
        """Copy ``source`` (a path, bytes, or an object with ``read``) into a directory of the guest.

        ``name`` is the file's name in the guest, by default that of the source's path; ``size`` is
        announced to the guest and only needed for a reader. ``progress(sent, size)`` is called after each
        chunk. The source is opened and read in blocks, in a thread. On any error and on cancellation the guest
        is told to forget the file. Raises GuestStatusError (ALREADY_EXISTS, DISK_FULL, FAIL ...), OSError of the
        source, SourceChangedError if it has another size than was announced, unless that is 0; a second copy waits.
        """
        async with self._one_copy, _opened(self._threads, source, name, size) as (reader, name, size):
            flags = FcopyFlag.OVERWRITE if overwrite else FcopyFlag(0)
            if create_path:
                flags |= FcopyFlag.CREATE_PATH
            began = time.perf_counter()
            start = StartCopy(name, directory, flags, size).encode()
            try:
                await self._ask(f"START {name!r}", start)
                sent = await self._write(reader, size, progress)
                await self._ask("COMPLETE", CompleteCopy().encode())
            except BaseException as error:
                await self._forget(error)
                raise
            return CopyReport(sent, time.perf_counter() - began)

    async def cancel(self) -> None:
        """Send CANCEL, whatever is going on."""
        await self._ask("CANCEL", CancelCopy().encode())

    async def _write(self, reader: Reader, size: int, progress: Progress | None) -> int:
        sent = 0
        while block := await self._threads.run(reader.read, _BLOCK):
            if size and sent + len(block) > size:
                raise SourceChangedError(f"the source has more than the {size} bytes that were announced")
            for at in range(0, len(block), CHUNK):
                chunk = block[at : at + CHUNK]
                await self._ask("WRITE", WriteChunk(sent, chunk).encode())
                sent += len(chunk)
                if progress is not None:
                    progress(sent, max(size, sent))
        if size and sent < size:
            raise SourceChangedError(f"the source has only {sent} bytes, {size} were announced")
        return sent

    async def _forget(self, error: BaseException) -> None:
        """Have what came of the file removed, unless the guest refused to begin or is gone."""
        if isinstance(error, GuestStatusError) and error.request.startswith("START"):
            return
        if self._session.negotiated is None:
            return
        try:
            await uninterrupted(self.cancel())
        except (HostError, MessageError):  # the first error says more
            pass

    async def _ask(self, request: str, body: bytes) -> None:
        reply = await self._session.ask(request, body)
        if reply.status:
            raise GuestStatusError("fcopy", request, reply.status)


@asynccontextmanager
async def _opened(
    threads: DaemonThreads,
    source: str | os.PathLike[str] | bytes | Reader,
    name: str | None,
    size: int | None,
) -> AsyncIterator[tuple[Reader, str, int]]:
    if isinstance(source, (str, os.PathLike)):
        file, length = await threads.run(_open, source)  # which may never answer
        try:
            yield file, name or os.path.basename(source), length if size is None else size
        finally:
            file.close()
        return
    if not name:
        raise ValueError("a file that does not come from a path needs a name")
    if isinstance(source, (bytes, bytearray, memoryview)):
        yield io.BytesIO(source), name, len(source)
    else:
        yield source, name, size or 0


def _open(source: str | os.PathLike[str]) -> tuple[io.FileIO, int]:
    """The file and its size; 0 for what has none, as a pipe."""
    # Without a buffer, whose lock a read that hangs would hold against whoever closes the file.
    file = open(source, "rb", buffering=0)  # noqa: SIM115 - the caller closes it
    try:
        return file, os.fstat(file.fileno()).st_size
    except BaseException:
        file.close()
        raise
