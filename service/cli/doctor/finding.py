"""The result of one examination."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["NOTE", "OK", "PROBLEM", "Finding"]

OK = "ok"
NOTE = "note"
PROBLEM = "problem"


class Finding(NamedTuple):
    """One line of the doctor's output.

    Attributes:
        level: ``ok``, ``note`` (it works, but could be better) or ``problem`` (it does
            not work).
        subject: The part that was examined.
        text: Its state.
        remedy: How to mend it; "" for ok.
    """

    level: str
    subject: str
    text: str
    remedy: str = ""
