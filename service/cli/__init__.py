"""The command ``steadwire``: a module for each of its commands.

A command imports the parts that it runs inside its function, so that
``steadwire --help`` stays fast.
"""

from __future__ import annotations

import sys
from typing import Any

import click

from service.cli import (
    backup,
    demo_agent,
    dev_gateway,
    doctor,
    importing,
    keys,
    serve,
    settings,
    tables,
    token,
)
from service.core.errors import SettingsError, SteadwireError

__all__ = ["main"]

_MISCONFIGURED = 2  # exit status, as for a usage error: trying again will not help


class _Group(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; an error of ours is shown on stderr, and status 2.

        It is one line, or a line for each mistake in the settings below a first one.
        """
        try:
            return super().invoke(ctx)
        except SteadwireError as error:
            if isinstance(error, SettingsError) and len(error.mistakes) > 1:
                count = len(error.mistakes)
                print(f"steadwire: {count} mistakes in the settings", file=sys.stderr)
                for mistake in error.mistakes:
                    print(" ", " ".join(mistake.split()), file=sys.stderr)
                ctx.exit(_MISCONFIGURED)
            print("steadwire:", " ".join(str(error).split()), file=sys.stderr)
            ctx.exit(_MISCONFIGURED)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="steadwire")
def main() -> None:
    """Real-time messaging for chat products."""


for _command in (
    serve.serve,
    token.token,
    keys.keys,
    backup.backup,
    backup.restore,
    tables.tables,
    settings.settings,
    importing.import_,
    doctor.doctor,
    demo_agent.demo_agent,
    dev_gateway.dev_gateway,
):
    main.add_command(_command)
