# SPDX-License-Identifier: Apache-2.0
from typing import final

from typing_extensions import Buffer

class Doorbell: ...

@final
class EventfdDoorbell(Doorbell):
    def __init__(self, signal_fd: int, wait_fd: int) -> None: ...

class UioDoorbell(Doorbell):
    def __init__(self, fd: int) -> None: ...

@final
class MonitorDoorbell(UioDoorbell):
    def __init__(self, fd: int, interrupts: Buffer, monitor: Buffer, relid: int, monitor_id: int) -> None: ...
