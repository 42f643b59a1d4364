"""``steadwire doctor``: examine settings, keys, store, port and installation."""

from __future__ import annotations

import os
import sys

import click

__all__ = ["doctor"]


@click.command()
@click.option(
    "--port", type=int, help="TCP port, as of serve.  [STEADWIRE_SERVER_PORT]"
)
@click.option(
    "--aws",
    metavar="STACK",
    help="Examine that stack of infra/serverless.yaml, and nothing of this machine.",
)
def doctor(port: int | None, aws: str | None) -> None:
    """Examine settings, keys, store, port and installation, and say what to mend.

    Changes nothing. The exit status is 1 if there is a problem.
    """
    import structlog

    from service.cli.doctor.examination import examine
    from service.cli.doctor.finding import PROBLEM

    # Only findings are printed on stdout.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    failed = False
    if aws:
        from service.cli.doctor.aws import examine_stack

        findings = examine_stack(aws)
    else:
        findings = examine(os.environ, port)
    for level, subject, text, remedy in findings:
        failed = failed or level == PROBLEM
        print(f"{level:<8} {subject:<10} {text}")
        if remedy:
            print(f"{'mend it:':>19} {remedy}")
    sys.exit(1 if failed else 0)
