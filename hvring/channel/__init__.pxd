# SPDX-License-Identifier: Apache-2.0
from hvring.channel._channel cimport Channel
from hvring.channel._doorbell cimport Doorbell, EventfdDoorbell
