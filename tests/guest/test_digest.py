# SPDX-License-Identifier: Apache-2.0
"""The SHA-256 of what a host copies in is that of the file, in whatever order its pieces come."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvring.guest.digest import Digest
from hvring.guest.files import DirectoryReceiver
from hvring.pending import settle


@given(st.lists(st.tuples(st.integers(0, 60), st.binary(min_size=1, max_size=30)), max_size=12))
def test_pieces_in_any_order_and_over_one_another(pieces: list[tuple[int, bytes]]) -> None:
    fd = os.memfd_create("file")
    try:
        digest = Digest()
        for offset, data in pieces:
            os.pwrite(fd, data, offset)
            digest.add(offset, data)
        size = os.fstat(fd).st_size
        found = digest.finish(fd, size, 60.0)
        assert found == sha256(os.pread(fd, size, 0)).hexdigest()
    finally:
        os.close(fd)


def test_a_file_that_takes_too_long_to_read_again_has_none(tmp_path: Path) -> None:
    with open(tmp_path / "file", "w+b") as file:
        file.write(b"data")
        file.flush()
        assert Digest().finish(file.fileno(), 4, -1.0) == ""


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="there is no sha256sum")
@pytest.mark.parametrize("size", [0, 1, 6144, 1_000_003])
@pytest.mark.parametrize("backwards", [False, True])
def test_a_receivers_is_that_of_sha256sum(tmp_path: Path, size: int, backwards: bool) -> None:
    data = os.urandom(size)
    receiver = DirectoryReceiver([tmp_path])
    incoming = settle(receiver.start(str(tmp_path), "file"))
    step = 100_000 if backwards else 6144
    offsets = list(range(0, size, step))
    for offset in reversed(offsets) if backwards else offsets:
        settle(incoming.write(offset, data[offset : offset + step]))
    path = settle(incoming.complete())
    said = subprocess.run(["sha256sum", path], check=True, capture_output=True, text=True, timeout=60).stdout
    assert incoming.sha256 == said.split()[0]  # type: ignore[attr-defined]
    receiver.close()


def test_nobody_pays_who_does_not_want_it(tmp_path: Path) -> None:
    receiver = DirectoryReceiver([tmp_path], sha256=False)
    incoming = settle(receiver.start(str(tmp_path), "file"))
    settle(incoming.complete())
    assert incoming.sha256 is None  # type: ignore[attr-defined]
    receiver.close()


def test_the_agent_itself_has_no_use_for_the_module() -> None:
    program = "import sys, hvring.agent.standard, hvring.guest.file_worker; print('hashlib' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "False\n"
