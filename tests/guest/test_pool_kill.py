# SPDX-License-Identifier: Apache-2.0
"""SIGKILL at any moment of a change: the pool file holds what was, or what should be, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvring.guest.records import KEY_SIZE, RECORD_SIZE, pack, pair, steps

ROOT = Path(__file__).parents[2]
ROUNDS = int(os.environ.get("HVRING_KILL_ROUNDS", "200"))

# One process forks a child per round and kills it: so a round takes milliseconds.
KILLER = """
import json, os, random, signal, sys, time
from hvring.guest.pool import Pool
from hvring.guest.records import RECORD_SIZE, pack, pair

how, path, rounds, others = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "beside others"
chance = random.Random(int(sys.argv[5]))
SIZES = (10, 700, 1300, 1900)

def value(key, size, turn):
    return f"{key}.{size}.{turn}." + f"{turn % 10}" * size

def is_whole(key, found):
    size, turn = found.split(".")[1:3]
    return found == value(key, int(size), int(turn))

def change(pool):
    turn = 0
    while True:
        turn += 1
        if how == "exchange":
            size = chance.choice(SIZES)
            pool.exchange(None, [(f"key{n}", value(f"key{n}", size, turn)) for n in range(60)])
            continue
        key = f"key{chance.randrange(60)}"
        if how == "delete" or (how == "both" and turn % 2):
            pool.delete(key)
        if how == "set" or how == "both":
            pool.set(key, value(key, chance.choice(SIZES), turn))

START = {f"key{n}": value(f"key{n}", SIZES[n % 4], 0) for n in range(60)}
report = {"torn": 0, "doubled": 0, "empty": 0, "ragged": 0, "lost": 0, "wrong": 0, "mixed": 0}
for turn in range(rounds):
    with open(path, "wb") as file:
        file.write(b"".join(pack(*item) for item in START.items()))
    held = open(path, "rb") if others else None
    child = os.fork()
    if child == 0:
        chance.seed(turn)
        change(Pool(path))
    time.sleep(chance.uniform(0, 0.004))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if held:
        held.close()
    with open(path, "rb") as file:
        image = file.read()
    found = [pair(image[at : at + RECORD_SIZE]) for at in range(0, len(image) - RECORD_SIZE + 1, RECORD_SIZE)]
    keys = [key for key, _ in found if key]
    report["ragged"] += bool(len(image) % RECORD_SIZE)
    report["empty"] += len(keys) != len(found)
    report["doubled"] += len(keys) != len(set(keys))
    report["torn"] += any(not is_whole(key, text) for key, text in found if key)
    read = dict(Pool(path).items())
    report["mixed"] += how == "exchange" and len({text.split(".")[2] for text in read.values()}) != 1
    report["lost"] += how in ("set", "exchange") and read.keys() != START.keys()
    report["wrong"] += any(not is_whole(key, text) for key, text in read.items()) or "" in read
    # Whatever is left is repaired by the next change.
    Pool(path).set("key0", "repaired")
    Pool(path).set("key0", value("key0", 10, 0))
    after = [key for key, _ in Pool(path).items()]
    report["wrong"] += after.count("key0") != 1 or os.stat(path).st_size != RECORD_SIZE * len(after)
print(json.dumps(report))
"""


def kill(how: str, path: Path, others: str) -> dict[str, int]:
    line = [sys.executable, "-c", KILLER, how, str(path), str(ROUNDS), others, "7"]
    done = subprocess.run(
        line, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, int] = json.loads(done.stdout)
    print(how, others, report)
    return report


@pytest.mark.parametrize("how", ["set", "delete", "both", "exchange"])
def test_a_kill_leaves_each_record_as_it_was_or_as_it_should_be(tmp_path: Path, how: str) -> None:
    report = kill(how, tmp_path / "pool", "alone")
    # With "exchange" that is: all of them, or none.
    del report["ragged"]  # a part of a record at the end, which nobody takes for one
    assert not any(report.values()), report


@pytest.mark.parametrize("how", ["set", "delete", "both", "exchange"])
def test_beside_others_a_kill_leaves_nothing_that_is_read_wrongly(tmp_path: Path, how: str) -> None:
    report = kill(how, tmp_path / "pool", "beside others")
    assert (report["torn"], report["lost"], report["wrong"]) == (0, 0, 0), report


values = st.integers(0, 2047).map(lambda n: "o" * n) | st.sampled_from(["", "o" * 2047, "same" * 300])


@given(place=st.integers(0, 7), old=values, new=values.map(lambda v: v.replace("o", "n")))
def test_a_value_that_lies_in_two_pages_is_written_so_that_one_page_decides(
    place: int, old: str, new: str
) -> None:
    before, after = pack("key", old), pack("key", new)
    start = place * RECORD_SIZE
    writes = steps(place, before, after)
    if writes is None:  # only where both values go over the end of the page
        edge = 4096 - start % 4096 - KEY_SIZE
        assert 0 < edge < 2048
        assert min(len(old), len(new)) >= edge
        return
    image = bytearray(before)
    for offset, data in writes:
        at = offset - start
        while data:  # the kernel may be stopped where a page ends
            part = data[: 4096 - (start + at) % 4096]
            image[at : at + len(part)] = part
            assert pair(bytes(image)) in (("key", old), ("key", new))
            at, data = at + len(part), data[len(part) :]
    assert pair(bytes(image)) == ("key", new)
