# SPDX-License-Identifier: Apache-2.0
"""README's Python examples are run as they stand there, but for the paths."""

from __future__ import annotations

import asyncio
import re
import threading
from pathlib import Path

import pytest

from hvring.errors import ChannelRescindedError
from hvring.host import VirtualHost
from hvring.host.testing import running_host
from hvring.pools import Pools

README = Path(__file__).parents[1] / "README.md"


def examples(heading: str, folder: Path) -> list[str]:
    """The Python blocks under a heading, with the folder in place of /tmp."""
    section = README.read_text().split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    found = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert found
    return [code.replace('"/tmp/', f'"{folder}/') for code in found]


def test_authors_of_agents(tmp_path: Path) -> None:
    (tmp_path / "incoming").mkdir()
    (code,) = examples("For authors of agents", tmp_path)
    told: list[str] = []
    code = code.replace("        ...\n", "        await used(agent)\n")
    with running_host(tmp_path / "host.sock") as host:

        async def used(agent: object) -> None:
            for verb in (host.wait_ready("kvp", "fcopy"), host.kvp.set("color", "green")):
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(verb, host.loop))
            told.append("used")

        names: dict[str, object] = {"used": used}
        exec(compile(code, "README", "exec"), names)
        main = names["main"]
        assert callable(main)
        asyncio.run(main())
        assert host.violations == []
    assert told == ["used"]
    assert b"color" in (tmp_path / "pools" / ".kvp_pool_0").read_bytes()


def test_authors_of_drivers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    driver, device = examples("For authors of drivers", tmp_path)
    names: dict[str, object] = {}
    exec(compile(device, "README", "exec"), names)
    host = names["host"]
    assert isinstance(host, VirtualHost)
    guid = "c0ffee00-0000-4000-8000-000000000001"
    ends: list[BaseException] = []

    def run() -> None:
        with pytest.raises(ChannelRescindedError) as caught:
            exec(compile(driver, "README", "exec"), {})
        ends.append(caught.value)

    async def serve() -> None:
        async with host:
            thread = threading.Thread(target=run)
            thread.start()
            printed = ""
            while "1 b'Hi there'\n" not in printed:
                await asyncio.sleep(0.01)
                printed += capsys.readouterr().out
            await host.set_offered(guid, False)
        thread.join(30)
        assert host.violations == []

    asyncio.run(asyncio.wait_for(serve(), 60))
    assert len(ends) == 1


def test_programs_in_a_virtual_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = examples("For programs in a virtual machine", tmp_path)
    # The host speaks when it is heard; the loop ends after the first change.
    code = code.replace("    for change", "    host.start()\n    for change") + "        break\n"
    pools = Pools(tmp_path / "hyperv")
    for n, part in enumerate(("size=", "large")):
        pools.external.set(f"app.config.{n}", part)
    names: dict[str, object] = {"host": threading.Thread(target=pools.external.set, args=("color", "green"))}
    exec(compile(code, "README", "exec"), names)
    assert names["config"] == "size=large"
    assert capsys.readouterr().out == "color None green\n"
    assert len(pools.guest) == 3
