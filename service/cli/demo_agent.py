"""``steadwire demo-agent``: a simulated agent, to see agent runs without a model."""

from __future__ import annotations

import asyncio
import os
import socket

import click

from service.core.errors import StartupError

__all__ = ["demo_agent"]


@click.command("demo-agent")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option(
    "--port", default=8001, show_default=True, help="TCP port; 0 takes a free one."
)
@click.option(
    "--pause",
    type=click.FloatRange(0, 10),
    default=0.04,
    show_default=True,
    help="Seconds between two words.",
)
@click.option("--inherited", type=int, hidden=True, help="A descriptor that listens.")
def demo_agent(host: str, port: int, pause: float, inherited: int | None) -> None:
    """Serve a simulated agent that speaks AG-UI: it needs no model and no network.

    The page of development has one already. This is for a server of your own:
    `url = "http://127.0.0.1:8001/"` in `[[agents]]`.
    """
    from service.demo.agent import DemoAgent
    from service.server.plain import serve_plain

    agent = DemoAgent(pause)
    if inherited is not None:
        listener = socket.socket(fileno=inherited)
        asyncio.run(serve_plain(agent, listener, ended=_orphaned))
        return
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()
    except OSError as error:
        listener.close()
        why = os.strerror(error.errno or 0)
        raise StartupError(f"cannot listen on port {port} of {host}: {why}") from error
    shown = f"[{host}]" if ":" in host else host
    print(f"http://{shown}:{listener.getsockname()[1]}/", flush=True)
    asyncio.run(serve_plain(agent, listener))


async def _orphaned() -> None:
    """Return when the process that started this one has ended.

    It holds the other end of our standard input, and never writes.
    """
    loop = asyncio.get_running_loop()
    closed = asyncio.Event()
    loop.add_reader(0, closed.set)
    try:
        await closed.wait()
    finally:
        loop.remove_reader(0)
