# SPDX-License-Identifier: Apache-2.0
"""The control socket of a running agent: who may speak to it, in which words, both ends."""
