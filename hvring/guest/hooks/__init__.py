# SPDX-License-Identifier: Apache-2.0
"""Programs that hold applications still around a freeze, and the process that sees each of them to its end.

The contract is in docs/hooks.md, the reasons in decision 0016.
"""
