# SPDX-License-Identifier: Apache-2.0
from typing import Self, final

from typing_extensions import Buffer, disjoint_base

@disjoint_base
class Doorbell: ...

@final
class EventfdDoorbell(Doorbell):
    def __new__(cls, signal_fd: int, wait_fd: int, *, closefd: bool = True) -> Self: ...
    def signal(self) -> None: ...
    def take(self) -> int: ...

@disjoint_base
class UioDoorbell(Doorbell):
    def __new__(cls, fd: int) -> Self: ...

@final
class MonitorDoorbell(UioDoorbell):
    def __new__(cls, fd: int, interrupts: Buffer, monitor: Buffer, relid: int, monitor_id: int) -> Self: ...
