# SPDX-License-Identifier: Apache-2.0
"""The hook for Redis, beside a real server."""

from __future__ import annotations

from typing import Any

import pytest
from hook_runner import HookFailed
from redis_server import Redis
from scene import Backup, count_of_backups, report

pytestmark = pytest.mark.root


def is_whole(backup: Backup) -> bool:
    """Whatever a writer heard; and no more than the one transaction that it has not heard of yet."""
    known = zip(backup.frozen, backup.found, backup.late, strict=True)
    return all(before <= there <= late + 1 for before, there, late in known)


@pytest.mark.parametrize("append_only", [True, False], ids=["append-only file", "snapshots"])
def test_what_was_acknowledged_is_in_every_image_and_nothing_came_after(
    scene: Any, append_only: bool
) -> None:
    database = scene(Redis, 128, append_only=append_only)
    backups = []
    for _ in range(count_of_backups()):
        backups.append(database.back_up())
        assert is_whole(backups[-1]), backups[-1]
    report(f"redis, append_only={append_only}", backups, is_whole)
    if not append_only:
        assert not is_whole(database.back_up(hook=False)), "the check cannot fail"


@pytest.mark.parametrize("how", ["abort", "kill"])
def test_the_end_of_the_hook_is_the_release_and_a_kill_soon_is(scene: Any, how: str) -> None:
    database = scene(Redis, 128)
    database.writers.get_on()
    database.hook.freeze()
    held = database.writers.acknowledged()
    database.server.ask("GET a0")  # reads are not held up
    assert all(n <= m + 1 for n, m in zip(database.writers.acknowledged(), held, strict=True))
    if how == "abort":
        database.hook.end("abort")
    else:
        database.hook.kill()
    database.writers.get_on()


def test_a_snapshot_that_cannot_be_written_fails_the_freeze(scene: Any) -> None:
    database = scene(Redis, 128, append_only=False)
    database.writers.get_on()
    database.namespace.run("chmod", "000", f"{database.namespace.folder}/data/db")
    with pytest.raises(HookFailed, match=r"freeze: 1: .*no snapshot could be written"):
        database.hook.freeze()
    database.writers.get_on()


def test_writers_go_on_when_the_freeze_fails(scene: Any, hang: Any) -> None:
    database = scene(Redis, 128)
    database.fail(hang("hung"))
    backup = database.back_up()
    assert is_whole(backup), backup


def test_a_server_that_is_not_there_is_named(scene: Any) -> None:
    database = scene(Redis, 128)
    database.server.end()
    with pytest.raises(HookFailed, match=r"prepare: 1: redis: .*/running: "):
        database.hook.run("prepare")
