# SPDX-License-Identifier: Apache-2.0
"""Receiving files from the host (PROTOCOL §4.6)."""

from __future__ import annotations

from typing import Protocol


class Incoming(Protocol):
    """One file on its way in."""

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write at an offset; EffectError with status DISK_FULL or FAIL."""
        ...

    def complete(self) -> str:
        """Publish the file and return its path; EffectError removes what was written."""
        ...

    def abort(self) -> None:
        """Remove what was written; harmless after the end."""
        ...


class FileReceiver(Protocol):
    """What the file copy service needs."""

    def start(
        self, directory: str, name: str, *, overwrite: bool = False, create_path: bool = False, size: int = 0
    ) -> Incoming:
        """Begin a file; EffectError with status ALREADY_EXISTS, DISK_FULL or FAIL."""
        ...
