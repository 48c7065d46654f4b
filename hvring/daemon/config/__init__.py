# SPDX-License-Identifier: Apache-2.0
"""The configuration file: every knob of the settings, read, checked, and printed.

Nothing here knows a knob by its name: a field that :func:`~hvring.agent.settings.knob` made is in the file.
"""
