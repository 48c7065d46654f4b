# SPDX-License-Identifier: Apache-2.0
"""The agent of the demo: ``hvring run`` in a process of its own."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from hvring.errors import HvringError

_TIMEOUT: Final = 60.0  # seconds for the process to end


class GuestError(HvringError):
    """The agent ended when it should not have."""


class GuestProcess:
    """``async with GuestProcess(socket, directory) as guest``: pools in ``directory/pools``, files in ``/files``."""

    def __init__(self, socket: Path, directory: Path) -> None:
        self.pools = directory / "pools"
        self.files = directory / "files"
        self.messages: list[dict[str, Any]] = []
        self._errors: list[str] = []
        self._socket = socket
        self._process: asyncio.subprocess.Process | None = None
        self._readers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> GuestProcess:
        self.files.mkdir(exist_ok=True)
        words = ["run", "--virtual", self._socket, "--pool-dir", self.pools, "--allow", self.files]
        words += ["--health", "healthy", "--json"]
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "hvring", *map(str, words), stdout=pipe, stderr=pipe
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._readers = [
            asyncio.create_task(self._read(self._process.stdout)),
            asyncio.create_task(self._complaints(self._process.stderr)),
        ]
        return self

    async def _read(self, stream: asyncio.StreamReader) -> None:
        async for line in stream:
            self.messages.append(json.loads(line))

    async def _complaints(self, stream: asyncio.StreamReader) -> None:
        async for line in stream:
            self._errors = [*self._errors[-19:], line.decode(errors="replace").rstrip()]

    async def watch(self) -> None:
        """Ends only when the process does: with GuestError."""
        assert self._process is not None
        status = await self._process.wait()
        await asyncio.gather(*self._readers)
        raise GuestError(
            f"the agent ended with status {status}: " + " | ".join(self._errors or ["it said nothing"])
        )

    async def stop(self) -> tuple[int, dict[str, Any]]:
        """End the agent as an administrator does, by SIGTERM: its exit status and its last words."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.terminate()
        status = await asyncio.wait_for(self._process.wait(), _TIMEOUT)
        await asyncio.gather(*self._readers)
        last = self.messages[-1] if self.messages else {}
        return status, last if last.get("event") == "summary" else {}

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        await asyncio.gather(*self._readers, return_exceptions=True)
