# SPDX-License-Identifier: Apache-2.0
"""Hyper-V VMBus rings and the six integration services for Linux guests."""
from hvring.channel import Channel
from hvring.errors import *  # noqa: F403
__version__ = "0.1.0.dev0"
