"""Proxies in front of servers: nginx and Caddy with a block of configuration."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.harness.process import environment, launched
from tests.harness.tools import proxy

__all__ = ["start_proxy"]

NGINX = """
daemon off;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
{block}
}}
"""
CADDY = """
{{
    admin off
    auto_https off
}}
{block}
"""


def start_proxy(name: str, block: str, directory: Path) -> subprocess.Popen[bytes]:
    """Start ``nginx`` or ``caddy``; it dies with the test.

    Args:
        name: Which of them.
        block: What is inside nginx's ``http``, or a site of a Caddyfile.
        directory: Its files.
    """
    frame = NGINX if name == "nginx" else CADDY
    file = directory / "proxy.conf"
    file.write_text(frame.format(directory=directory, block=block))
    executable = proxy(name)
    command = (
        [executable, "-p", directory, "-c", file]
        if name == "nginx"
        else [executable, "run", "--adapter", "caddyfile", "--config", file]
    )
    home = {"HOME": str(directory), "XDG_DATA_HOME": str(directory)}
    return subprocess.Popen(
        launched(*command),
        env={**environment({}), **home},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
