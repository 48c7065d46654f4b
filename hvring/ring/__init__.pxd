# SPDX-License-Identifier: Apache-2.0
from hvring.ring._ring cimport Packet, RingConsumer, RingProducer
