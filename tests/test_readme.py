# SPDX-License-Identifier: Apache-2.0
"""README's Python examples are run as they stand there, but for the paths."""

from __future__ import annotations

import asyncio
import re
import threading
from pathlib import Path

import pytest

from hvring.errors import ChannelRescindedError
from hvring.host import Event
from hvring.host.testing import running_host

README = Path(__file__).parents[1] / "README.md"


def example(heading: str, folder: Path) -> str:
    """The Python block under a heading, with the folder in place of /tmp."""
    section = README.read_text().split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    found = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert found is not None
    return found[1].replace('"/tmp/', f'"{folder}/')


def test_authors_of_agents(tmp_path: Path) -> None:
    (tmp_path / "incoming").mkdir()
    code = example("For authors of agents", tmp_path)
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


def test_authors_of_drivers(tmp_path: Path) -> None:
    code = compile(example("For authors of drivers", tmp_path), "README", "exec")
    heard = threading.Event()
    ends: list[BaseException] = []

    def listen(event: Event) -> None:
        if event.kind == "violation":  # the host's request, sent back as it came, is no answer to it
            heard.set()

    def run() -> None:
        with pytest.raises(ChannelRescindedError) as caught:
            exec(code, {})
        ends.append(caught.value)

    with running_host(tmp_path / "host.sock", on_event=listen) as host:
        driver = threading.Thread(target=run)
        driver.start()
        assert heard.wait(30)
        assert any("heartbeat" in str(violation) for violation in host.violations)
    driver.join(30)
    assert len(ends) == 1
