"""What an examination has found."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["NOTE", "OK", "PROBLEM", "Finding"]

OK = "ok"
NOTE = "note"
PROBLEM = "problem"


class Finding(NamedTuple):
    """One line of the doctor's.

    Attributes:
        level: ``ok``, ``note`` (it works, but) or ``problem`` (it does not).
        subject: What was looked at.
        text: What was found.
        remedy: How to mend it; "" for ok.
    """

    level: str
    subject: str
    text: str
    remedy: str = ""
