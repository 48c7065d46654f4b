# SPDX-License-Identifier: Apache-2.0
"""What a host's SET_IP becomes here: a file for whoever manages this machine's network (PROTOCOL §4.4.6).

Off by default.  What the host wants is checked as a whole (``order``) before anything is written; each way of writing
is a module with ``DIRECTORY``, ``file_name``, ``MODE`` and ``text``.
"""
