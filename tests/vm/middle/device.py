# SPDX-License-Identifier: Apache-2.0
"""The host's end of one hv-ic device, for requests written by hand."""

from __future__ import annotations

import contextlib
import socket
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from frames import IN_BAND, Frame, take

# Written down a second time on purpose: a lab that used hvring's own table would not notice it to be wrong.
GUIDS: Final = {  # service: (class, instance)
    "shutdown": ("0e0b6031-5213-4934-818b-38d90ced39db", "b6650ff7-33bc-4840-8048-e0676786f393"),
    "timesync": ("9527e630-d0ae-497b-adce-e80ab0175caf", "2dd1ce17-079e-403c-b352-a1921ee207ee"),
    "heartbeat": ("57164f39-9115-4e78-ab55-382f3bd5422d", "fd149e91-82e0-4a7d-afa6-2a4166cbd7c0"),
    "kvp": ("a9a0f4e7-5a45-4d96-b827-8a841e8c03e6", "242ff919-07db-4180-9c2e-b86cb68c8c55"),
    "vss": ("35fa2e29-ea23-4236-96ae-3a6ebacba440", "2450ee40-33bf-4fbd-892e-9fb06e9214cf"),
    "fcopy": ("34d14be3-dee4-41c8-9ae7-6b174977c192", "eb765408-105f-49b6-b4aa-c123b64d17d4"),
}


class Packet(NamedTuple):
    """A packet that the guest sent."""

    payload: bytes
    type: int
    transaction_id: int
    completion: bool
    channel: int  # 0: the primary


class Device:
    """One service's device. QEMU connects to ``path`` (and again 0.5 s after the connection ended).

    The socket is read only while one of the methods waits. ``opens`` counts the guest's channel opens,
    ``notes`` keeps what the device told beside packets: (kind, number, text). ``subchannels``: how many it has;
    ``open_subchannels`` are the numbers, from 1 on, of those that the guest has open.
    """

    def __init__(self, name: str, directory: Path, subchannels: int = 0) -> None:
        self.name = name
        self.subchannels = subchannels
        self.class_guid, self.instance_guid = GUIDS[name]
        self.path = directory / f"{name}.sock"
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.path))
        self.listener.listen(1)
        self.open = False
        self.opens = 0
        self.open_subchannels: set[int] = set()
        self.notes: list[tuple[str, int, str]] = []
        self._socket: socket.socket | None = None
        self._bytes = bytearray()
        self._packets: deque[Packet] = deque()
        self._transaction_id = 0x1000

    def arguments(self) -> list[str]:
        """QEMU's arguments for this device."""
        chardev = f"socket,id=c-{self.name},path={self.path},reconnect-ms=500"
        device = f"hv-ic,id={self.name},classid={self.class_guid},instanceid={self.instance_guid}"
        more = f"chardev=c-{self.name},subchannels={self.subchannels}"
        return ["-chardev", chardev, "-device", f"{device},{more}"]

    def connect(self, timeout: float = 30.0) -> None:
        """Take QEMU's connection. TimeoutError."""
        self.listener.settimeout(timeout)
        self._socket, _ = self.listener.accept()
        self._bytes.clear()
        self.open = False

    def hand_over(self) -> socket.socket:
        """Give the device to other code: our connection ends, QEMU's next one comes to the returned listener.

        It starts with hello and, if the channel is open, with O. ``connect`` takes the device back.
        """
        self.close()
        return self.listener

    def close(self) -> None:
        """End the connection, if there is one."""
        if self._socket:
            self._socket.close()
            self._socket = None

    def wait_open(self, timeout: float = 20.0) -> bool:
        """Wait until the guest has the channel open."""
        return self._until(lambda: self.open, timeout)

    def wait_closed(self, timeout: float = 20.0) -> bool:
        """Wait until the guest has the channel closed."""
        return self._until(lambda: not self.open, timeout)

    def send(
        self,
        payload: bytes,
        *,
        transaction_id: int | None = None,
        packet_type: int = IN_BAND,
        completion: bool = False,
        channel: int = 0,
    ) -> int:
        """Give the device a packet for the guest; returns its transaction id."""
        if transaction_id is None:
            self._transaction_id += 1
            transaction_id = self._transaction_id
        self._send(Frame("P", payload, transaction_id, completion, packet_type, channel))
        return transaction_id

    def receive(self, timeout: float = 10.0) -> Packet | None:
        """The next packet from the guest, or None if none came in time."""
        self._until(lambda: bool(self._packets), timeout)
        return self._packets.popleft() if self._packets else None

    def ask(self, payload: bytes, timeout: float = 10.0, *, channel: int = 0) -> bytes | None:
        """Send a request; the payload of its channel's packet with its transaction id, others before it are dropped."""
        wanted = channel, self.send(payload, channel=channel)
        end = time.monotonic() + timeout
        while packet := self.receive(end - time.monotonic()):
            if (packet.channel, packet.transaction_id) == wanted:
                return packet.payload
        return None

    def statistics(self, timeout: float = 5.0) -> str:
        """The device's own counters, as text; "" if it does not answer."""
        self._send(Frame("Q"))
        seen = len(self.notes)
        found: list[str] = []

        def told() -> bool:
            found[:] = [text for kind, _, text in self.notes[seen:] if kind == "S"]
            return bool(found)

        self._until(told, timeout)
        return found[-1] if found else ""

    def offer_subchannels(self) -> None:
        """Offer them to the guest, which it sees behind its next message to VMBus (binding a device sends some)."""
        self._send(Frame("N"))

    def wait_subchannels(self, *numbers: int, timeout: float = 20.0) -> bool:
        """Wait until the guest has these open, and no others."""
        return self._until(lambda: self.open_subchannels == set(numbers), timeout)

    def drop_waiting(self) -> None:
        """Make the device forget the packets that wait for room in the guest's ring."""
        self._send(Frame("X"))

    def _send(self, frame: Frame) -> None:
        if not self._socket:
            raise ConnectionError(f"{self.name}: not connected")
        self._socket.settimeout(None)
        self._socket.sendall(frame.encode())

    def _until(self, condition: Callable[[], bool], timeout: float) -> bool:
        end = time.monotonic() + timeout
        while not condition():
            if not self._socket:
                raise ConnectionError(f"{self.name}: not connected")
            left = end - time.monotonic()
            if left <= 0:
                return False
            self._socket.settimeout(left)
            with contextlib.suppress(TimeoutError):
                data = self._socket.recv(1 << 16)
                if not data:
                    self.close()
                    raise ConnectionError(f"{self.name}: QEMU ended the connection")
                self._take(data)
        return True

    def _take(self, data: bytes) -> None:
        self._bytes += data
        for frame in take(self._bytes):
            if frame.kind == "P":
                packet = Packet(
                    frame.payload, frame.packet_type, frame.number, frame.completion, frame.channel
                )
                self._packets.append(packet)
            elif frame.channel:
                self._note_subchannel(frame)
            else:
                self._note(frame.kind, frame.number, frame.payload.decode(errors="replace"))

    def _note(self, kind: str, number: int, text: str) -> None:
        self.notes.append((kind, number, text))
        if kind == "O":
            self.open, self.opens = True, number
        elif kind == "C":
            self.open = False

    def _note_subchannel(self, frame: Frame) -> None:
        if frame.kind == "O":
            self.open_subchannels.add(frame.channel)
        elif frame.kind == "C":
            self.open_subchannels.discard(frame.channel)
