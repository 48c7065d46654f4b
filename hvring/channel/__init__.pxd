# SPDX-License-Identifier: Apache-2.0
from hvring.channel._channel cimport Channel, Doorbell, EventfdDoorbell
