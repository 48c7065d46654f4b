# SPDX-License-Identifier: Apache-2.0
"""The host in a thread, for tests that block."""

from __future__ import annotations

import threading

import pytest
from scripted_guest import Book

from hvring.errors import ChannelRescindedError, EndpointError
from hvring.host import NotReadyError
from hvring.host.testing import running_host
from hvring.transport.virtual import connect


def serve_kvp(path: str) -> None:
    book = Book("kvp")
    try:
        with connect(path, "kvp") as channel:
            while channel.wait():
                for packet in channel:
                    channel.send(book.answer(packet.payload), transaction_id=packet.transaction_id)
    except ChannelRescindedError:
        pass


def test_blocking_tests_drive_the_host_from_their_own_thread(path):
    with running_host(path) as host:
        with pytest.raises(NotReadyError):
            host.do(host.kvp.get("k"))
        guest = threading.Thread(target=serve_kvp, args=(path,))
        guest.start()
        host.do(host.wait_ready("kvp"))
        host.do(host.kvp.set("color", "green"))
        assert host.do(host.kvp.get("color")) == "green"
        assert host.violations == []
    guest.join(10)
    assert not guest.is_alive()


def test_a_verb_that_takes_too_long_is_cancelled(path):
    with running_host(path) as host, pytest.raises(TimeoutError):
        host.do(host.wait_ready("kvp"), timeout=0.05)


def test_a_host_that_cannot_start_says_why(path):
    with (
        running_host(path),
        pytest.raises(EndpointError, match="another process listens"),
        running_host(path),
    ):
        pass


def test_an_error_of_the_test_comes_through_and_ends_the_host(path):
    with pytest.raises(ZeroDivisionError), running_host(path):
        1 / 0  # noqa: B018
    with running_host(path):
        pass
