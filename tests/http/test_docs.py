"""The examples and the table of docs/api.md and docs/hooks.md are correct."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from service.app import Application
from service.core.errors import ReplyError
from service.core.hooks import ConnectEvent
from service.core.model import ClientId
from service.http.api.methods import METHODS

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_table_of_methods_is_complete() -> None:
    text = (DOCS / "api.md").read_text()
    table = text[text.index("## Methods") : text.index("## In the same process")]
    documented = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert documented == [*(method.name for method in METHODS), "batch"]


async def test_example_of_hooks_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # without anybody's steadwire.toml
    text = (DOCS / "hooks.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "docs/hooks.md", "exec"), names)
    assert isinstance(names["app"], Application)
    result = await names["connect"](ConnectEvent(ClientId("c"), token="letmein"))
    assert result.user == "ann"
    with pytest.raises(ReplyError):
        await names["connect"](ConnectEvent(ClientId("c")))
