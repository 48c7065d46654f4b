# SPDX-License-Identifier: Apache-2.0
"""Serving: :class:`Agent` for asyncio, :func:`serve` for one service in a thread of the caller."""

from hvring.agent.agent import Agent, Event, EventKind, Opener
from hvring.agent.blocking import serve
from hvring.agent.exchange import Exchange
from hvring.agent.standard import Effects, standard_services

__all__ = ["Agent", "Effects", "Event", "EventKind", "Exchange", "Opener", "serve", "standard_services"]
