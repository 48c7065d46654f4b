# SPDX-License-Identifier: Apache-2.0
"""The directory in which everything that is the same for all runs is kept, made in stages."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.debian import Archive


def default_directory() -> Path:
    """$HVRING_LAB_CACHE, else hvring-lab in $XDG_CACHE_HOME or ~/.cache."""
    if given := os.environ.get("HVRING_LAB_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hvring-lab"


class Cache:
    """A stage is a directory that appears whole or not at all, stamped with the recipe of its making."""

    def __init__(self, directory: Path, say: Callable[[str], None]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory.resolve()
        self.say = say

    @property
    def archive(self) -> Archive:
        """apt, with its package lists fetched (once; ``refresh`` forgets them)."""
        return Archive(self.stage("apt", "1", lambda directory: Archive(directory).update()))

    def refresh(self) -> None:
        """Forget the package lists: the next use fetches them anew."""
        shutil.rmtree(self.directory / "apt", ignore_errors=True)

    def has(self, name: str, recipe: str) -> bool:
        """Whether the stage is there and was made by this recipe."""
        try:
            return (self.directory / name / ".made").read_text() == recipe
        except FileNotFoundError:
            return False

    def stage(self, name: str, recipe: str, make: Callable[[Path], object]) -> Path:
        """The directory of a stage; ``make`` fills an empty one if there is none by this recipe."""
        path = self.directory / name
        if not self.has(name, recipe):
            self.say(f"making {name}")
            fresh = path.with_name(path.name + ".new")
            for old in (path, fresh):
                shutil.rmtree(old, ignore_errors=True)
            fresh.mkdir(parents=True)
            make(fresh)
            (fresh / ".made").write_text(recipe)
            fresh.rename(path)
        return path

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One builder at a time; others wait."""
        with (self.directory / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
