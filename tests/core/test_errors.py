"""The wire tables, and the description of an exception for the log."""

from __future__ import annotations

import re

from service.core import errors
from service.core.errors import Close, ErrorReply, Unsubscribe, describe
from tests.harness.process import ROOT

ROWS = [row for row in vars(errors).values() if isinstance(row, ErrorReply | Close)]


def test_codes_are_unique_and_within_their_ranges() -> None:
    for kind, codes in (
        (ErrorReply, range(100, 400)),
        (Close, range(3000, 5000)),
        (Unsubscribe, range(2000, 3000)),
    ):
        found = [row.code for row in ROWS if type(row) is kind]
        assert found and len(found) == len(set(found))
        assert all(code in codes for code in found)


def test_reasons_fit_a_close_frame_and_are_not_json() -> None:
    for row in ROWS:
        text = row.message if isinstance(row, ErrorReply) else row.reason
        assert len(text.encode()) < 123
        assert text[0].isalpha() and text not in ("true", "false", "null")


def test_a_description_has_type_and_stack_but_no_text() -> None:
    try:
        raise ExceptionGroup("secret", [ValueError("secret"), KeyError("secret")])
    except ExceptionGroup as error:
        found = describe(error)
    assert found["error"] == "ExceptionGroup(ValueError, KeyError)"
    assert "test_errors" in found["stack"]
    shown = [line for line in found["stack"].splitlines() if "raise" not in line]
    assert "secret" not in "".join(shown) + found["error"]


def test_the_page_of_codes_has_every_row_and_no_other() -> None:
    page = (ROOT / "docs" / "codes.md").read_text(encoding="utf-8")
    found = re.findall(r"^\| (\d+) \| ([^|]+) \| (?:(yes)? ?\| )?", page, re.MULTILINE)
    documented = [(int(code), text, word == "yes") for code, text, word in found]
    rows = [
        (row.code, row.message, row.temporary)
        if isinstance(row, ErrorReply)
        else (row.code, row.reason, False)
        for row in ROWS
    ]
    assert sorted(documented) == sorted(rows)
