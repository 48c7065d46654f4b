# SPDX-License-Identifier: Apache-2.0
"""What `hvring run` adds to an agent: a configuration, one log, a control socket, metrics, the service manager.

:class:`hvring.daemon.daemon.Daemon` puts them together; each is a module that can be used beside an
:class:`hvring.agent.Agent` of one's own:

* :mod:`~hvring.daemon.settings`, :mod:`~hvring.daemon.config`, :mod:`~hvring.daemon.reload`: the configuration, its
  file, and another one in its place
* :mod:`~hvring.daemon.log`, :mod:`~hvring.daemon.forms`: events and records of :mod:`logging` as lines
* :mod:`~hvring.daemon.status`, :mod:`~hvring.daemon.metrics`, :mod:`~hvring.daemon.control`,
  :mod:`~hvring.daemon.listener`: how an agent is, for those who ask
* :mod:`~hvring.daemon.health`, :mod:`~hvring.daemon.checks`: what the heartbeat says of the applications
* :mod:`~hvring.daemon.notify`, :mod:`~hvring.daemon.signals`: who started this program, and who ends it
* :mod:`~hvring.daemon.planning`, :mod:`~hvring.daemon.reasons_pool`: what a backup would do, and why one failed
"""
