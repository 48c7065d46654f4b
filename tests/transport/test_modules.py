# SPDX-License-Identifier: Apache-2.0
"""What a kernel's lists of modules say."""

from __future__ import annotations

import pytest

from hvring.transport.modules import claims
from hvring.vmbus import BY_NAME

KVP, FCOPY = BY_NAME["kvp"].class_guid, BY_NAME["fcopy"].class_guid
#: As 6.12 has them: file copy is uio_hv_generic's.
ALIASES = """# Aliases extracted from modules themselves.
alias vmbus:e34bd134e4dec8419ae76b174977c192 uio_hv_generic
alias vmbus:292efa3523ea364296ae3a6ebacba440 hv_utils
alias vmbus:e7f4a0a9455a964db8278a841e8c03e6 hv_utils
alias pci:v00001AF4d*sv*sd*bc*sc*i* virtio_pci
"""
BUILT_IN = (
    "hv_vmbus.license=GPL\0hv_utils.alias=vmbus:e7f4a0a9455a964db8278a841e8c03e6\0hv_utils.license=GPL\0"
)


@pytest.mark.parametrize(
    ("index", "text", "kvp", "fcopy"),
    [
        ("modules.alias", ALIASES, True, False),
        ("modules.alias", ALIASES.replace("uio_hv_generic", "hv_utils"), True, True),
        ("modules.alias", ALIASES.replace("hv_utils", "other"), None, None),
        ("modules.alias", "", None, None),
        ("modules.builtin.modinfo", BUILT_IN, True, False),
        ("modules.builtin.modinfo", BUILT_IN.replace("hv_utils.alias", "hv_balloon.alias"), None, None),
        ("modules.dep", ALIASES, None, None),
    ],
)
def test_a_module_says_which_classes_it_drives(tmp_path, index: str, text: str, kvp, fcopy) -> None:
    (tmp_path / "6.12").mkdir()
    (tmp_path / "6.12" / index).write_text(text)
    assert claims("hv_utils", KVP, "6.12", tmp_path) is kvp
    assert claims("hv_utils", FCOPY, "6.12", tmp_path) is fcopy


def test_a_kernel_without_lists_says_nothing(tmp_path) -> None:
    assert claims("hv_utils", KVP, "6.12", tmp_path) is None
