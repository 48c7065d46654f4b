# SPDX-License-Identifier: Apache-2.0
"""A server in the namespace as an unprivileged user, and what it said."""

from __future__ import annotations

import subprocess
import threading
import time
from typing import Any

TIMEOUT = 180.0  # for what must happen; nobody waits that long where all is well


class Program:
    """Its output is read all the time; it dies with this process."""

    def __init__(self, namespace: Any, user: str, *command: str) -> None:
        as_user = ("setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--pdeathsig=KILL")
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._ended = False
        self.process = subprocess.Popen(
            namespace.inside(*as_user, *command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def wait_for(self, words: str) -> None:
        def is_there() -> bool:
            return self._ended or any(words in line for line in self.lines)

        with self._news:
            assert self._news.wait_for(is_there, TIMEOUT), self.lines
            assert any(words in line for line in self.lines), self.lines

    def kill(self) -> None:
        """At once; ends when what it has started goes, too."""
        self.process.kill()
        self.process.wait()
        self._reader.join(TIMEOUT)  # its children have the same output
        assert not self._reader.is_alive(), "its children are still there"

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                with self._news:
                    self.lines.append(line.decode(errors="replace").rstrip("\n"))
                    self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()


class Writers:
    """Clients that commit numbered transactions all the time, and what each of them knows to be committed."""

    def __init__(self, clients: list[Any]) -> None:
        self._each = [_Writer(client) for client in clients]
        for writer in self._each:
            writer.thread.start()

    def acknowledged(self) -> list[int]:
        return [writer.acknowledged for writer in self._each]

    def get_on(self, count: int = 20) -> None:
        """Until each has committed this many more."""
        for writer, goal in [(writer, writer.acknowledged + count) for writer in self._each]:
            with writer.news:
                came = writer.news.wait_for(lambda w=writer, n=goal: w.ended or w.acknowledged >= n, TIMEOUT)
                assert came, f"no transaction gets on: {self.acknowledged()}"
                assert not writer.ended, writer.ended

    def hold(self) -> None:
        """Until go(): no transaction begins, and none is under way when this returns."""
        for writer in self._each:
            with writer.news:
                writer.held = True
                assert writer.news.wait_for(lambda w=writer: w.idle or w.ended, TIMEOUT)

    def go(self) -> None:
        for writer in self._each:
            with writer.news:
                writer.held = False
                writer.news.notify_all()

    def longest_stall(self) -> float:
        """Seconds that a commit took, at most, since this was asked last."""
        stalls = [writer.longest for writer in self._each]
        for writer in self._each:
            writer.longest = 0.0
        return max(stalls)

    def end(self) -> None:
        for writer in self._each:
            with writer.news:
                writer.ends = True
                writer.news.notify_all()
            writer.client.kill()
        for writer in self._each:
            writer.thread.join(TIMEOUT)
            assert not writer.thread.is_alive()


class _Writer:
    def __init__(self, client: Any) -> None:
        self.client = client
        self.acknowledged = 0
        self.longest = 0.0
        self.ends = False
        self.ended = ""
        self.news = threading.Condition()
        self.held = False
        self.idle = False
        self.thread = threading.Thread(target=self._write)

    def _write(self) -> None:
        try:
            while self._may():
                began = time.monotonic()
                self.client.commit(self.acknowledged + 1)
                with self.news:
                    self.longest = max(self.longest, time.monotonic() - began)
                    self.acknowledged += 1
                    self.news.notify_all()
        except (OSError, ValueError) as problem:
            with self.news:
                self.ended = f"{type(problem).__name__}: {problem}"
                self.news.notify_all()
        finally:
            self.client.close()

    def _may(self) -> bool:
        with self.news:
            while self.held and not self.ends:
                self.idle = True
                self.news.notify_all()
                self.news.wait()
            self.idle = False
            return not self.ends


class LineClient:
    """A database's own client: statements in, and a line out when they are done."""

    def __init__(self, command: list[str], transaction: str) -> None:
        self._transaction = transaction
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0
        )

    def commit(self, number: int) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(self._transaction.replace("%", str(number)).encode() + b"\n")
        answer = self._process.stdout.readline()
        if answer != b"%d\n" % number:
            raise ValueError(f"{answer!r} after {number}")

    def kill(self) -> None:
        """So that commit() ends."""
        self._process.kill()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
