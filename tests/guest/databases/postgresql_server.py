# SPDX-License-Identifier: Apache-2.0
"""PostgreSQL from Debian, as small as it gets."""

from __future__ import annotations

import os
import shutil
import signal
import time
from glob import glob
from pathlib import Path
from typing import Any

import pytest
from program import TIMEOUT, LineClient, Program
from scene import HOOKS

#: As small as it gets; and nothing but commits, its writer and the hook writes the log out.
_SETTINGS = {
    "listen_addresses": "",
    "shared_buffers": "16MB",
    "wal_buffers": "8MB",
    "min_wal_size": "4MB",
    "max_wal_size": "64MB",
    "bgwriter_lru_maxpages": "0",
    "autovacuum": "off",
    "checkpoint_timeout": "1h",
}
_WRITERS = 2


class Postgresql:
    def __init__(self, namespace: Any, mount: str, *for_log: str, synchronous: bool = True) -> None:
        programs = sorted(glob("/usr/lib/postgresql/*/bin/postgres"))
        if not programs or shutil.which("psql") is None:
            pytest.skip("not installed: postgresql")
        self._programs = Path(programs[-1]).parent
        self._namespace = namespace
        self._synchronous = synchronous
        self._data = f"{mount}/db"
        self._sockets = namespace.folder / "sockets"
        self._sockets.mkdir()
        self._sockets.chmod(0o777)
        self._running: Program | None = None
        self._looking: Program | None = None
        self._for_log = for_log
        self._mounts = (mount, *for_log)
        self._late = 0

    def begin(self) -> None:
        self._namespace.run("chown", "postgres:", *self._mounts)
        log = tuple(f"--waldir={place}/wal" for place in self._for_log)
        options = (*log, "-A", "trust", "-k", "-N", "--wal-segsize=1", "-E", "UTF8", "--locale=C")
        self._namespace.run(
            *("runuser", "-u", "postgres", "--", str(self._programs / "initdb"), "-D", self._data, *options),
            timeout=TIMEOUT,
        )
        self._running = self._start(self._data, 1)
        if not self._synchronous:  # the process that writes the log out later is late for good
            self._late = self._process("walwriter")
            os.kill(self._late, signal.SIGSTOP)
        tables = [f"CREATE TABLE {side}{n} (n int PRIMARY KEY)" for n in range(_WRITERS) for side in "ab"]
        self.ask("; ".join(tables))

    def hook(self) -> str:
        return f'#!/bin/sh\nexport PGHOST={self._sockets} PGPORT=1\nexec {HOOKS / "postgresql"} "$@"\n'

    def clients(self) -> list[LineClient]:
        on = "on" if self._synchronous else "off"
        inserts = "INSERT INTO a{n} VALUES (%); INSERT INTO b{n} VALUES (%)"
        text = f"SET synchronous_commit = {{}}; BEGIN; {inserts}; COMMIT;\n\\echo %"
        return [LineClient(self._psql(1), text.format(on, n=n)) for n in range(_WRITERS)]

    def ask(self, statement: str, port: int = 1) -> str:
        return str(self._namespace.run(*self._psql(port), "-c", statement, timeout=TIMEOUT))

    def position(self) -> int:
        """How far the log of the running server has got, in bytes."""
        return int(self.ask("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn"))

    def redo(self, data: str) -> int:
        """From where the log of an image is to be read again, in bytes."""
        control = self._namespace.run(str(self._programs / "pg_controldata"), f"{data}/db")
        (line,) = [line for line in control.splitlines() if "checkpoint's REDO location" in line]
        high, low = line.split()[-1].split("/")
        return (int(high, 16) << 32) + int(low, 16)

    def look(self, *data: str) -> list[int]:
        self.redo_of_last_image = self.redo(data[0])
        for log in data[1:]:
            self._namespace.run("ln", "-sfn", f"{log}/wal", f"{data[0]}/db/pg_wal")
        self._namespace.run("rm", f"{data[0]}/db/postmaster.pid")  # its process lives, on this machine
        self._looking = server = self._start(f"{data[0]}/db", 2)
        try:
            assert any("automatic recovery in progress" in line for line in server.lines), server.lines
            levels = ("PANIC:", "FATAL:", "ERROR:", "WARNING:")
            assert not [line for line in server.lines if any(level in line for level in levels)], server.lines
            found = []
            for n in range(_WRITERS):
                (count, last), other = self._count(f"a{n}"), self._count(f"b{n}")
                assert (count, last) == other, f"torn: {count}, {other}"
                assert count == last, f"holes: {count} of {last}"
                found.append(count)
            check = (
                "--heapallindexed",
                "--install-missing",
                "-h",
                str(self._sockets),
                "-p",
                "2",
                "-U",
                "postgres",
            )
            self._namespace.run(str(self._programs / "pg_amcheck"), *check, "postgres", timeout=TIMEOUT)
            return found
        finally:
            server.kill()
            self._looking = None

    def _count(self, table: str) -> tuple[int, int]:
        count, last = self.ask(f"SELECT count(*), coalesce(max(n), 0) FROM {table}", 2).split("|")
        return int(count), int(last)

    def end(self) -> None:
        if self._looking is not None:
            self._looking.kill()
        if self._late:
            os.kill(self._late, signal.SIGCONT)
            self._late = 0
        if self._running is not None:
            self._running.kill()

    def _process(self, name: str) -> int:
        """The server's process of that name, which it has a moment after it has begun."""
        assert self._running is not None
        postmaster = self._running.process.pid
        give_up_at = time.monotonic() + TIMEOUT
        while time.monotonic() < give_up_at:
            for pid in Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split():
                if name in Path(f"/proc/{pid}/cmdline").read_text():
                    return int(pid)
            time.sleep(0.01)
        raise AssertionError(f"no {name}")

    def _start(self, data: str, port: int) -> Program:
        settings = {**_SETTINGS, "port": str(port), "unix_socket_directories": str(self._sockets)}
        words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        server = Program(self._namespace, "postgres", str(self._programs / "postgres"), "-D", data, *words)
        try:
            server.wait_for("database system is ready to accept connections")
        except BaseException:
            server.kill()
            raise
        return server

    def _psql(self, port: int) -> list[str]:
        options = ("-X", "-q", "-At", "-v", "ON_ERROR_STOP=1", "-h", str(self._sockets), "-p", str(port))
        return ["psql", *options, "-U", "postgres", "-d", "postgres"]
