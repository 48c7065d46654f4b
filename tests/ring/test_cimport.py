# SPDX-License-Identifier: Apache-2.0
"""The example extension of examples/cimport_ring: built as a user would, against the headers that hvring ships."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest

import hvring.ring
from hvring.ring import RingConsumer, RingProducer

EXAMPLE = Path(__file__).parents[2] / "examples" / "cimport_ring"


@pytest.fixture(scope="module")
def pump(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    pytest.importorskip("Cython")
    if shutil.which("cc") is None and shutil.which("gcc") is None:
        pytest.skip("there is no C compiler")
    if not EXAMPLE.is_dir():
        pytest.skip("the tests were copied without the examples")
    folder = tmp_path_factory.mktemp("cimport")
    shutil.copytree(EXAMPLE, folder, dirs_exist_ok=True)
    # where this hvring is, installed or not
    environment = {
        "PYTHONPATH": str(Path(hvring.__file__).parents[1]),
        "PATH": "/usr/local/bin:/usr/bin:/bin",
    }
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "warning:" not in done.stderr, done.stderr
    spec = importlib.util.spec_from_file_location("pump", next(folder.glob("pump*.so")))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_headers_are_where_it_says() -> None:
    assert {path.name for path in Path(hvring.ring.get_include()).glob("*.h")} >= {"atomics.h", "copy.h"}


def test_packets_pass_without_the_gil(pump: ModuleType) -> None:
    memory = bytearray(4096 + 4096)
    producer, consumer = RingProducer(memory), RingConsumer(memory)
    assert pump.produce(producer, b"hello", 32, batch=8) == 1
    assert consumer.recv().transaction_id == 0
    target = bytearray(64)
    assert pump.consume(consumer, target, 100, wait=False) == 31
    assert target[:8] == b"hello\0\0\0"
    assert pump.pairs(producer, consumer, b"x" * 600, bytearray(600), 1000) == 1000
    assert producer.free == producer.size


def test_two_threads_without_the_gil(pump: ModuleType) -> None:
    memory = bytearray(4096 + 8192)
    producer, consumer = RingProducer(memory), RingConsumer(memory)
    got: list[int] = []
    reader = threading.Thread(target=lambda: got.append(pump.consume(consumer, bytearray(128), 200_000)))
    reader.start()
    pump.produce(producer, bytes(100), 200_000, batch=16)
    reader.join()
    assert got == [200_000]


def test_a_lie_ends_it(pump: ModuleType) -> None:
    memory = bytearray(4096 + 4096)
    producer, consumer = RingProducer(memory), RingConsumer(memory)
    memory[0:4] = b"\x04\0\0\0"
    with pytest.raises(RuntimeError, match="writer lied"):
        pump.consume(consumer, bytearray(64), 1)
    memory[0:8] = b"\0\0\0\0\x04\0\0\0"
    with pytest.raises(RuntimeError, match="reader lied"):
        pump.produce(producer, bytes(1000), 10)
