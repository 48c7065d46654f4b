# SPDX-License-Identifier: Apache-2.0
"""What people and tools can learn about the extension classes without reading their source."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import hvring.channel
import hvring.ring
from hvring.ring import RingConsumer, RingProducer

CLASSES = [
    one
    for module in (hvring.ring, hvring.channel)
    for one in vars(module).values()
    if isinstance(one, type) and one.__module__.startswith(("hvring.ring", "hvring.channel"))
]
METHODS = [
    pytest.param(getattr(kind, name), id=f"{kind.__name__}.{name}")
    for kind in CLASSES
    for name, member in vars(kind).items()
    if not name.startswith("_") and callable(member)
]


@pytest.mark.parametrize("method", METHODS)
def test_every_public_method_has_a_signature_and_words(method) -> None:
    first = next(iter(inspect.signature(method).parameters.values()))
    assert first.name in ("self", "$self")
    assert method.__doc__


def test_signatures_say_names_kinds_and_defaults() -> None:
    parameters = inspect.signature(hvring.channel.Channel.send).parameters
    assert list(parameters) == ["self", "payload", "transaction_id", "packet_type", "flags", "timeout"]
    assert parameters["packet_type"].default == 6
    assert parameters["timeout"].kind is inspect.Parameter.KEYWORD_ONLY


def test_the_stubs_say_what_the_extensions_are() -> None:
    pytest.importorskip("mypy")
    root = Path(hvring.channel.__file__).parents[2]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy.stubtest", "--mypy-config-file", "pyproject.toml"),
            *("hvring.ring", "hvring.channel"),
        ],
        capture_output=True,
        text=True,
        cwd=root,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_state_of_a_ring_is_for_people() -> None:
    memory = bytearray(8192)
    producer, consumer = RingProducer(memory), RingConsumer(memory)
    producer.send(b"8 bytes.")
    assert not producer.want_room(4064)
    consumer.mask()
    assert (
        producer.state()
        == consumer.state()
        == {
            "write_index": 32,
            "read_index": 0,
            "interrupt_mask": 1,
            "pending_send_sz": 4088,
            "feature_bits": 1,
            "size": 4096,
        }
    )
