# SPDX-License-Identifier: Apache-2.0
"""The hook for MariaDB, beside a real server."""

from __future__ import annotations

from typing import Any

import pytest
from hook_runner import HookFailed
from mariadb_server import Mariadb
from scene import Backup, count_of_backups, report

pytestmark = pytest.mark.root


def is_whole(backup: Backup) -> bool:
    """Whatever a writer heard; and no more than the one commit that it has not heard of yet."""
    return len(backup.found) == len(backup.late) and all(
        n <= there <= n + 1 for there, n in zip(backup.found, backup.late, strict=True)
    )


def test_what_was_committed_is_in_every_image_and_nothing_came_after(scene: Any) -> None:
    """With a log that is flushed by each commit, and once a second; with tables that know no transactions, too."""
    database = scene(Mariadb)
    backups: dict[int, list[Backup]] = {0: [], 1: []}
    for n in range(count_of_backups()):
        flush = n % 2
        database.server.ask(f"SET GLOBAL innodb_flush_log_at_trx_commit = {flush}", "running")
        backups[flush].append(database.back_up())
        assert is_whole(backups[flush][-1]), backups[flush][-1]
        assert database.server.unsound == []
    for flush, done in backups.items():
        if done:
            report(f"mariadb, innodb_flush_log_at_trx_commit = {flush}", done, is_whole)
    database.server.ask("SET GLOBAL innodb_flush_log_at_trx_commit = 0", "running")
    without = [database.back_up(hook=False) for _ in range(2)]
    assert not any(map(is_whole, without)), "the check cannot fail"
    assert database.server.unsound, "the check cannot fail"


def test_the_end_of_the_hook_is_the_release_whichever_end(scene: Any) -> None:
    database = scene(Mariadb)
    for how in ("abort", "kill", "taken away"):
        database.writers.get_on()
        database.hook.freeze()
        held = database.writers.acknowledged()
        database.server.ask("SELECT 1", "running")  # reads are not held up
        assert all(n <= m + 1 for n, m in zip(database.writers.acknowledged(), held, strict=True))
        if how == "abort":
            database.hook.end("abort")
        elif how == "kill":
            database.hook.kill()
        else:
            holder = "SELECT id FROM information_schema.processlist WHERE command = 'Sleep' AND db = 'mysql'"
            database.server.ask(f"KILL {database.server.ask(holder, 'running')}", "running")
            with pytest.raises(HookFailed, match="thaw: 1: "):
                database.hook.end("thaw")
        database.writers.get_on()


def test_writers_go_on_when_the_freeze_fails(scene: Any, hang: Any) -> None:
    database = scene(Mariadb)
    database.fail(hang("hung"))
    backup = database.back_up()
    assert is_whole(backup), backup


def test_a_server_that_is_not_there_is_named(scene: Any) -> None:
    database = scene(Mariadb)
    database.server.end()
    with pytest.raises(HookFailed, match=r"prepare: 1: .*Can't connect to local server"):
        database.hook.run("prepare")
