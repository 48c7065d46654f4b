# SPDX-License-Identifier: Apache-2.0
"""Commands that go on beside a test, and a VMBus for those that end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from hvring.transport import kernels
from hvring.transport.kernels import Kernel
from hvring.transport.sysfs import UIO_DRIVER, Bus

HVRING = [sys.executable, "-W", "error", "-m", "hvring"]


class Running:
    """A command that goes on; its lines are read as they come."""

    def __init__(self, *words: str | os.PathLike[str], **options: object) -> None:
        self.process = subprocess.Popen(  # type: ignore[call-overload]
            [*HVRING, *map(str, words)], stdout=subprocess.PIPE, text=True, **options
        )
        self.lines: list[str] = []
        self._seen = 0
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            with self._news:
                self.lines.append(line.rstrip("\n"))
                self._news.notify_all()

    def wait_for(self, *words: str, timeout: float = 60) -> str:
        """The next line with all these words, after the one that was waited for before."""

        def found() -> str | None:
            return next(
                (line for line in self.lines[self._seen :] if all(word in line for word in words)), None
            )

        with self._news:
            assert self._news.wait_for(found, timeout), f"no line with {words} in {self.lines}"
            line = found()
            self._seen = self.lines.index(line, self._seen) + 1
        return line

    def end(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        status = self.process.wait(60)
        self._reader.join(60)
        self.process.stdout.close()
        return status


@pytest.fixture
def start() -> Iterator[Callable[..., Running]]:
    """``start("run", …)``: `hvring run …`, ended with the test; keywords are those of Popen."""
    running: list[Running] = []

    def make(*words: str | os.PathLike[str], **options: object) -> Running:
        running.append(Running(*words, **options))
        return running[-1]

    yield make
    for one in running:
        one.end(signal.SIGKILL)


@pytest.fixture
def here(bus, monkeypatch):
    """A bus whose kernel is a good one and hears also what the commands write."""
    monkeypatch.setattr(kernels, "running", lambda: Kernel("6.17.13", (6, 17, 13)))
    monkeypatch.setattr(Bus, "write", lambda self, path, text: bus.write(path, text))
    bus.load(UIO_DRIVER)
    return bus
