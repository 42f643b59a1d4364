"""``steadwire token``: make a token by hand, to try things out."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import click

from _speedups import check

__all__ = ["token"]


def _json(_: click.Context, option: click.Parameter, value: str | None) -> Any:
    try:
        return None if value is None else json.loads(check(value))
    except ValueError:
        text = f"{value!r} is not JSON: quote it"
        raise click.BadParameter(text, param=option) from None


@click.command()
@click.option("--user", required=True, help='The user that it names; "" is anonymous.')
@click.option("--channel", help="Make a subscription token, for this channel.")
@click.option(
    "--exp",
    type=click.IntRange(0, 10**10),
    default=3600,
    show_default=True,
    help="Seconds until it expires; 0 for never.",
)
@click.option("--info", callback=_json, help="Shown to others.")
@click.option("--data", callback=_json, help="With --channel: for the client.")
@click.option("--client", help="With --channel: the only connection it is for.")
@click.option("--meta", callback=_json, help="Without --channel: for the server alone.")
@click.option(
    "--join",
    multiple=True,
    help="Without --channel: subscribe to this one on the server's side. Repeatable.",
)
def token(
    user: str,
    channel: str | None,
    exp: int,
    info: Any,
    data: Any,
    client: str | None,
    meta: Any,
    join: tuple[str, ...],
) -> None:
    """Print a connection token, or with --channel a subscription token.

    It is made with HS256 and the secret of the settings (hmac_secret_key), for their
    audience and issuer.
    """
    if channel is None and (data is not None or client is not None):
        raise click.UsageError("--data and --client need --channel")
    if channel is not None and (meta is not None or join):
        raise click.UsageError("--meta and --join are not for a --channel")
    now = int(time.time())
    claims = {
        "sub": user,
        "channel": channel,
        "iat": now,
        "exp": now + exp if exp else None,
        "info": info,
        "data": data,
        "client": client,
        "meta": meta,
        "channels": join or None,
    }
    from service.auth.issue import issue
    from service.settings import load

    settings = load(os.environ, {})
    keys = settings.token if channel is None else settings.subscription_keys
    section = "subscription_token" if keys is not settings.token else "token"
    given = {name: value for name, value in claims.items() if value is not None}
    try:
        print(issue(keys, given, section))
    except UnicodeEncodeError:
        raise click.UsageError("an option is not in UTF-8") from None
