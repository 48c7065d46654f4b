# SPDX-License-Identifier: Apache-2.0
"""From a name to an open channel: ``uio`` on Hyper-V, ``virtual`` without it."""
