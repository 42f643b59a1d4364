"""The table of methods in docs/api.md is complete."""

from __future__ import annotations

import re
from pathlib import Path

from service.http.api.methods import METHODS

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_table_of_methods_is_complete() -> None:
    text = (DOCS / "api.md").read_text()
    table = text[text.index("## Methods") : text.index("## Several processes")]
    documented = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert documented == [*(method.name for method in METHODS), "batch"]
