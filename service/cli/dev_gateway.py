"""``steadwire dev-gateway``: the serverless mode on a laptop."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import click

__all__ = ["dev_gateway"]


@click.command("dev-gateway")
@click.option("--port", default=8010, show_default=True, help="Of the gateway.")
@click.option(
    "--server-port",
    default=8000,
    show_default=True,
    help="Of the server: the API, and what HTTP_PROXY integrations call.",
)
@click.option(
    "--integration",
    type=click.Choice(["http", "lambda"]),
    default="lambda",
    show_default=True,
    help="What handles clients: the server, or a function in processes that are frozen "
    "between two events.",
)
@click.option(
    "--table",
    metavar="URL",
    default="",
    help="A DynamoDB that runs already; else ministack is started.",
)
def dev_gateway(port: int, server_port: int, integration: str, table: str) -> None:
    """Run the service behind an emulated API Gateway, with an emulated table.

    It is the serverless mode as it would run on AWS, on one machine, for trying and for
    tests. Ctrl-C ends it, and what was stored is gone. Settings are those of `serve`;
    the store, the gateway and the credentials are set here.
    """
    asyncio.run(_run(port, server_port, integration == "lambda", table))


async def _run(port: int, server_port: int, function: bool, table: str) -> None:
    from service.dev_gateway.laptop import laptop

    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with laptop(
        os.environ,
        port=port,
        server_port=server_port,
        table=table,
        function=function,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    ) as found:
        handles = "a Lambda function" if function else "HTTP_PROXY integrations"
        print(
            f"Steadwire behind an emulated API Gateway, with {handles}\n"
            f"  WebSocket  {found.clients}\n"
            f"  API        {found.server}/api\n"
            f"  DynamoDB   {found.table}\n",
            flush=True,
        )
        await stopped.wait()
