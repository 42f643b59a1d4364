"""The instructions of a Dockerfile."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

__all__ = ["Instruction", "read_dockerfile"]


class Instruction(NamedTuple):
    """One of them.

    Attributes:
        stage: The number of its stage; -1 before the first one.
        name: In capitals.
        text: The rest, in one line.
    """

    stage: int
    name: str
    text: str

    @property
    def words(self) -> list[str]:
        """The text of an instruction in the form of a list of JSON, or of words."""
        if self.text.startswith("["):
            words: list[str] = json.loads(self.text)
            return words
        return self.text.split()


def read_dockerfile(path: Path) -> list[Instruction]:
    """Return its instructions in order."""
    lines = [line for line in path.read_text().splitlines() if line[:1] != "#"]
    text = re.sub(r"\\\n\s*", "", "\n".join(lines) + "\n")
    found: list[Instruction] = []
    stage = -1
    for line in filter(None, text.split("\n")):
        name, _, rest = line.partition(" ")
        stage += name == "FROM"
        found.append(Instruction(stage, name, rest.strip()))
    return found
