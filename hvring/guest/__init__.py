# SPDX-License-Identifier: Apache-2.0
"""What a service does to this machine: one module per part of it, each usable by itself.

Beside the real effects stand rehearsed ones, which keep the same state and touch nothing.
"""
