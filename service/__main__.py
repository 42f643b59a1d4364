"""``python -m service`` is the command ``steadwire``."""

from __future__ import annotations

from service.cli import main

main(prog_name="python -m service")
