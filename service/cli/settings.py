"""``steadwire settings``: print the reference of all settings."""

from __future__ import annotations

import click

__all__ = ["settings"]


@click.command()
def settings() -> None:
    """Print every setting in Markdown: name, variable, type, default and meaning."""
    from service.settings import reference

    print(reference(), end="")
