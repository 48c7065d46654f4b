# SPDX-License-Identifier: Apache-2.0
"""MariaDB from Debian, as small as it gets."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
from program import TIMEOUT, LineClient, Program
from scene import HOOKS

_OPTIONS = (
    "--skip-networking",
    "--innodb-log-file-size=8M",
    "--innodb-buffer-pool-size=16M",
    "--innodb-flush-log-at-trx-commit=0",  # only the hook promises anything
    "--aria-pagecache-buffer-size=8M",
    "--key-buffer-size=8M",
    "--delay-key-write=ALL",
    "--log-bin=binlog",
    "--sync-binlog=0",
    "--max-binlog-size=4096",
    "--binlog-expire-logs-seconds=1",
    "--myisam-recover-options=OFF",  # what needs a repair is to be seen
)
_WRITERS = 2  # of InnoDB; one more has a table that knows no transactions


class Mariadb:
    def __init__(self, namespace: Any, mount: str) -> None:
        missing = [p for p in ("mariadbd", "mariadb", "mariadb-install-db") if shutil.which(p) is None]
        if missing:
            pytest.skip(f"not installed: {', '.join(missing)}")
        self._namespace = namespace
        self._data = f"{mount}/db"
        self._sockets = namespace.folder / "sockets"
        self._sockets.mkdir()
        self._sockets.chmod(0o777)
        self._running: Program | None = None
        self._looking: Program | None = None
        self.unsound: list[str] = []

    def begin(self) -> None:
        self._namespace.run("mkdir", self._data)
        self._namespace.run("chown", "mysql:", self._data)
        install = ("mariadb-install-db", "--no-defaults", "--user=mysql", "--skip-test-db")
        self._namespace.run(*install, f"--datadir={self._data}", "--innodb-log-file-size=8M", timeout=TIMEOUT)
        self._running = self._start(self._data, "running")
        tables = [f"CREATE TABLE {side}{n} (n int PRIMARY KEY)" for n in range(_WRITERS) for side in "ab"]
        self.ask("CREATE DATABASE t", "running", "mysql")
        self.ask("; ".join([*tables, "CREATE TABLE m (n int PRIMARY KEY) ENGINE MyISAM"]), "running")

    def hook(self) -> str:
        client = " ".join(self._client("running", "mysql"))
        return f"#!/bin/sh\nexport HVRING_MARIADB='{client}'\nexec {HOOKS / 'mariadb'} \"$@\"\n"

    def clients(self) -> list[LineClient]:
        text = "BEGIN; INSERT INTO a{n} VALUES (%); INSERT INTO b{n} VALUES (%); COMMIT; SELECT %;"
        texts = [text.format(n=n) for n in range(_WRITERS)]
        command = [*self._client("running"), "--unbuffered"]
        return [LineClient(command, text) for text in [*texts, "INSERT INTO m VALUES (%); SELECT %;"]]

    def ask(self, statement: str, which: str, database: str = "t") -> str:
        return str(self._namespace.run(*self._client(which, database), "-e", statement, timeout=TIMEOUT))

    def look(self, *data: str) -> list[int]:
        self._looking = server = self._start(f"{data[0]}/db", "copy")
        try:
            wrong = [line for line in server.lines if "[ERROR]" in line]
            assert not wrong, server.lines
            names = [f"{side}{n}" for n in range(_WRITERS) for side in "ab"] + ["m"]
            check = self.ask(f"CHECK TABLE {', '.join(names)} EXTENDED", "copy")
            self.unsound = [line for line in check.splitlines() if not line.endswith("\tstatus\tOK")]
            counts = [
                self._count(name) for name in names if not any(f"t.{name}\t" in w for w in self.unsound)
            ]
            assert counts[0:-1:2] == counts[1::2], "torn"
            return counts[::2]
        finally:
            server.kill()
            self._looking = None

    def _count(self, table: str) -> int:
        count, last = self.ask(f"SELECT count(*), coalesce(max(n), 0) FROM {table}", "copy").split()
        assert count == last, f"holes: {table} has {count} of {last}"
        return int(count)

    def end(self) -> None:
        if self._looking is not None:
            self._looking.kill()
        if self._running is not None:
            self._running.kill()

    def _start(self, data: str, which: str) -> Program:
        server = Program(
            self._namespace,
            "mysql",
            shutil.which("mariadbd") or "",
            *("--no-defaults", f"--datadir={data}", f"--socket={self._sockets / which}", *_OPTIONS),
        )
        try:
            server.wait_for("ready for connections")
        except BaseException:
            server.kill()
            raise
        return server

    def _client(self, which: str, database: str = "t") -> list[str]:
        return ["mariadb", "--no-defaults", "-BN", f"--socket={self._sockets / which}", database]
