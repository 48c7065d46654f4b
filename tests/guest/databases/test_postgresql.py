# SPDX-License-Identifier: Apache-2.0
"""The hook for PostgreSQL, beside a real server."""

from __future__ import annotations

from typing import Any

import pytest
from hook_runner import HookFailed
from postgresql_server import Postgresql
from scene import Backup, count_of_backups, report

pytestmark = pytest.mark.root


def has(found: list[int], promised: list[int]) -> bool:
    return all(there >= n for there, n in zip(found, promised, strict=True))


def test_what_was_acknowledged_is_in_every_image(scene: Any) -> None:
    """Whatever a writer heard until the file system was frozen, or later."""
    database = scene(Postgresql)

    def is_whole(backup: Backup) -> bool:
        return has(backup.found, backup.late)

    backups = []
    for _ in range(count_of_backups()):
        position = database.server.position()
        backups.append(database.back_up())
        assert is_whole(backups[-1]), backups[-1]
        assert database.server.redo_of_last_image >= position, "recovery begins before this backup"
    report("postgresql", backups, is_whole)


@pytest.mark.parametrize("log_first", [False, True])
def test_log_and_data_may_be_frozen_one_after_the_other(scene: Any, log_first: bool) -> None:
    database = scene(Postgresql, 128, "log", others_first=log_first)
    for _ in range(count_of_backups()):
        backup = database.back_up()
        assert has(backup.found, backup.late), backup


def test_without_waiting_for_the_log_writers_hear_of_what_is_in_the_image(scene: Any) -> None:
    """synchronous_commit = off promises nothing for a power cut; the hook does until the freeze begins."""
    database = scene(Postgresql, synchronous=False)

    def is_whole(backup: Backup) -> bool:
        return has(backup.found, backup.before)

    backups = []
    for _ in range(count_of_backups()):
        backups.append(database.back_up())
        assert is_whole(backups[-1]), backups[-1]
    report("postgresql, synchronous_commit = off", backups, is_whole)
    position = database.server.position()
    assert not is_whole(database.back_up(hook=False)), "the check cannot fail"
    assert database.server.redo_of_last_image < position, "the check cannot fail"


def test_clusters_that_are_online_are_found(scene: Any) -> None:
    database = scene(Postgresql)
    folder = database.namespace.folder
    listing = folder / "pg_lsclusters"
    listing.write_text(
        "#!/bin/sh\ncat <<END\n"
        "15 main 1 online,recovery postgres /x/main /x/main.log\n"
        "13 old 5433 down postgres /x/old /x/old.log\nEND\n"
    )
    listing.chmod(0o755)
    script = folder / "hooks.d" / "50-database"
    script.write_text(
        f"#!/bin/sh\nPATH={folder}:$PATH\n" + script.read_text().split("\n", 1)[1].replace("PGPORT=1", "")
    )
    before = database.server.position()
    database.hook.run("prepare")
    assert int(database.server.ask("SELECT checkpoint_lsn - '0/0' FROM pg_control_checkpoint()")) > before
    listing.write_text(listing.read_text().replace("down", "online"))
    with pytest.raises(HookFailed, match="prepare: 1: port 5433: "):
        database.hook.run("prepare")


def test_a_freeze_that_fails_leaves_nothing_behind(scene: Any, hang: Any) -> None:
    database = scene(Postgresql)
    database.fail(hang("hung"))
    backup = database.back_up()
    assert has(backup.found, backup.late), backup


def test_a_server_that_is_not_there_is_named(scene: Any) -> None:
    database = scene(Postgresql)
    database.server.end()
    with pytest.raises(HookFailed, match=r"prepare: 1: .*port 1: .*connection to server on socket"):
        database.hook.run("prepare")
