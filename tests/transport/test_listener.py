# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import fcntl
import os
import socket
import stat

import pytest

from hvring.errors import EndpointError
from hvring.transport.listener import Listener


def leave_stale(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as old:
        old.bind(path)


def test_a_listener_owns_its_path_from_open_to_close(tmp_path):
    path = str(tmp_path / "sock")
    with Listener(path, socket.SOCK_SEQPACKET):
        mode = os.stat(path).st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600
    assert not os.path.exists(path)


def test_a_stale_socket_is_replaced(tmp_path):
    path = str(tmp_path / "sock")
    leave_stale(path)
    with (
        Listener(path, socket.SOCK_SEQPACKET),
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as guest,
    ):
        guest.connect(path)


@pytest.mark.parametrize("kind", [socket.SOCK_SEQPACKET, socket.SOCK_STREAM])
def test_a_live_socket_is_left_alone(tmp_path, kind):
    path = str(tmp_path / "sock")
    with Listener(path, kind):
        with pytest.raises(EndpointError, match="another process listens"):
            Listener(path, socket.SOCK_SEQPACKET)
        with socket.socket(socket.AF_UNIX, kind) as guest:
            guest.connect(path)


def test_what_a_start_that_was_interrupted_left_is_replaced(tmp_path):
    leave_stale(str(tmp_path / "soc~"))
    with Listener(tmp_path / "sock", socket.SOCK_SEQPACKET):
        assert os.listdir(tmp_path) == ["sock"]


def test_another_file_is_left_alone(tmp_path):
    path = tmp_path / "file"
    path.write_text("precious")
    with pytest.raises(EndpointError, match="not a socket"):
        Listener(path, socket.SOCK_SEQPACKET)
    assert path.read_text() == "precious"


def test_closing_leaves_a_successors_socket_alone(tmp_path):
    path = str(tmp_path / "sock")
    first = Listener(path, socket.SOCK_SEQPACKET)
    os.unlink(path)
    with Listener(path, socket.SOCK_SEQPACKET):
        first.close()
        first.close()
        assert os.path.exists(path)


def test_a_missing_directory_is_an_endpoint_error(tmp_path):
    with pytest.raises(EndpointError, match="cannot listen"):
        Listener(tmp_path / "no" / "sock", socket.SOCK_SEQPACKET)


def test_a_path_that_is_too_long_is_an_endpoint_error(tmp_path):
    with pytest.raises(EndpointError, match="cannot listen"):
        Listener(tmp_path / ("x" * 120), socket.SOCK_SEQPACKET)


def test_a_directory_that_somebody_keeps_locked_is_no_place_to_listen(tmp_path, monkeypatch):
    monkeypatch.setattr("hvring.transport.listener._LOCK_TIMEOUT", 0.05)
    holder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_SH)  # any user who may list it can do that
    try:
        with pytest.raises(EndpointError, match="another program keeps its directory locked"):
            Listener(tmp_path / "sock", socket.SOCK_SEQPACKET)
    finally:
        os.close(holder)
    with Listener(tmp_path / "sock", socket.SOCK_SEQPACKET):
        pass


def test_a_locked_directory_does_not_keep_a_listener_from_ending(tmp_path, monkeypatch):
    monkeypatch.setattr("hvring.transport.listener._LOCK_TIMEOUT", 0.05)
    path = str(tmp_path / "sock")
    listener = Listener(path, socket.SOCK_SEQPACKET)
    holder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    listener.close()
    os.close(holder)
    with Listener(path, socket.SOCK_SEQPACKET):  # what it left behind is stale
        pass
