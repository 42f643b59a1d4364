"""The command ``steadwire``."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click
import structlog

from _speedups import check
from service.core.errors import SteadwireError
from service.settings import Settings, load, reference
from service.stores.sqlite import backup as copying

if TYPE_CHECKING:
    from service.settings import DynamodbSettings
    from service.stores.dynamodb.client import Client

__all__ = ["main"]

T = TypeVar("T")

_MISCONFIGURED = 2  # exit code, as for a usage error: trying again will not help


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="steadwire")
def main() -> None:
    """Real-time messaging for chat products."""


@main.command()
@click.option("--host", help="Address to listen on.  [STEADWIRE_SERVER_HOST]")
@click.option(
    "--port", type=int, help="TCP port; 0 takes a free one.  [STEADWIRE_SERVER_PORT]"
)
@click.option("--store", help="The SQLite file, or :memory:.  [STEADWIRE_STORE_PATH]")
def serve(host: str | None, port: int | None, store: str | None) -> None:
    """Serve clients until SIGTERM or Ctrl-C.

    Settings come from steadwire.toml (or the file that STEADWIRE_CONFIG names), then
    from STEADWIRE_… variables, then from these options.
    """
    overrides = _without_none(
        {"server": {"host": host, "port": port}, "store": {"path": store}}
    )
    try:
        settings = load(os.environ, overrides)
        # Not before the settings are known to be right: this imports everything.
        from service import logs, server
        from service.app import create_app

        logs.configure(settings.log)  # stderr: the announcement owns stdout
        app = create_app(settings)
        ready = _announcement(settings, app.api_key)
        server.run(server.serve(app, settings, ready=ready, drain=app.drain))
    except SteadwireError as error:
        _refuse(error)


@main.command()
@click.argument("file")
@click.option("--store", help="The SQLite file.  [STEADWIRE_STORE_PATH]")
def backup(file: str, store: str | None) -> None:
    """Copy the embedded store to FILE, also while a server uses it.

    FILE must not exist. It appears when it is complete, checked and on the disk.
    """
    try:
        settings = load(os.environ, _without_none({"store": {"path": store}}))
        copied = copying.backup(settings.store, file)
    except SteadwireError as error:
        _refuse(error)
    print(f"{file}: {copied.channels} channels, {copied.publications} publications")


@main.command()
@click.argument("file")
@click.option("--store", help="The SQLite file.  [STEADWIRE_STORE_PATH]")
def restore(file: str, store: str | None) -> None:
    """Put a copy of the backup FILE in the place of the embedded store.

    The server must be stopped. The store that was there is kept beside the new one.
    Every channel gets a new epoch: clients are told that they missed something.
    """
    try:
        settings = load(os.environ, _without_none({"store": {"path": store}}))
        copied, replaced = copying.restore(settings.store, file)
    except SteadwireError as error:
        _refuse(error)
    path = settings.store.path
    print(f"{path}: {copied.channels} channels, {copied.publications} publications")
    if replaced:
        print(f"{replaced}: the store that was there before")


def _json(_: click.Context, option: click.Parameter, value: str | None) -> Any:
    try:
        return None if value is None else json.loads(check(value))
    except ValueError:
        raise click.BadParameter(f"{value!r} is no JSON: quote it", param=option) from (
            None
        )


@main.command()
@click.option("--user", required=True, help='Whose it is; "" is anonymous.')
@click.option("--channel", help="Make a subscription token, for this channel.")
@click.option(
    "--exp",
    type=click.IntRange(0, 10**10),
    default=3600,
    show_default=True,
    help="Seconds it is valid; 0 for ever.",
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
    try:
        settings = load(os.environ, {})
        # Only here: this imports cryptography.
        from service.auth import issue

        keys = settings.token if channel is None else settings.subscription_keys
        where = "subscription_token" if keys is not settings.token else "token"
        given = {name: value for name, value in claims.items() if value is not None}
        print(issue(keys, given, where))
    except SteadwireError as error:
        _refuse(error)
    except UnicodeEncodeError:
        raise click.UsageError("an option is not in UTF-8") from None


@main.command()
@click.option("--name", help="Make a key of the server API, called so.")
@click.option(
    "--publish",
    multiple=True,
    help='It may publish to this namespace, "" for none. Repeatable.',
)
@click.option("--publish-all", is_flag=True, help="It may publish everywhere.")
@click.option("--read", is_flag=True, help="It may look at everything.")
@click.option("--administer", is_flag=True, help="It may act on connections.")
@click.option("--days", type=click.IntRange(1, 36500), help="It is valid so long.")
def keys(
    name: str | None,
    publish: tuple[str, ...],
    publish_all: bool,
    read: bool,
    administer: bool,
    days: int | None,
) -> None:
    """Print fresh secrets, as lines for steadwire.toml.

    With --name, print a key of the server API and the lines for api.keys_file, which
    hold only its digest.
    """
    if name is None:
        if publish or publish_all or read or administer or days:
            raise click.UsageError("what a key may do needs --name")
        # 64 random bytes are enough for every HS*, and 32 for a key that is compared.
        print(f'[token]\nhmac_secret_key = "{secrets.token_urlsafe(64)}"\n')
        print(f'[api]\nkey = "{secrets.token_urlsafe(32)}"')
        return
    # Only here: this imports cryptography.
    from service.auth import digest_of, read_api_keys

    key = secrets.token_urlsafe(32)
    lines = [f"[{json.dumps(name)}]", f'sha256 = "{digest_of(key).hex()}"']
    if publish_all or publish:
        lines.append(f"publish = {json.dumps(publish_all or publish)}")
    lines += [f"{scope} = true" for scope in _granted(read=read, administer=administer)]
    if days:
        lines.append(f"not_after = {int(time.time()) + 86400 * days}")
    text = "\n".join(lines)
    try:
        read_api_keys(text, publish)
    except SteadwireError as error:
        raise click.UsageError(str(error)) from None
    print(f"# The key, for who calls with it; it is kept nowhere:\n# {key}\n{text}")


def _granted(**scopes: bool) -> list[str]:
    return [scope for scope, granted in scopes.items() if granted]


@main.command()
def settings() -> None:
    """Print every setting in Markdown: name, variable, type, default and meaning."""
    print(reference(), end="")


@main.command("doctor")
def run_doctor() -> None:
    """Look at settings, keys, store, port and installation, and say what to mend.

    Changes nothing. The exit status is 1 if there is a problem.
    """
    # The findings own stdout.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    from service.cli.doctor import PROBLEM, examine

    failed = False
    for level, subject, text, remedy in examine(os.environ):
        failed = failed or level == PROBLEM
        print(f"{level:<8} {subject:<10} {text}")
        if remedy:
            print(f"{'mend it:':>19} {remedy}")
    sys.exit(1 if failed else 0)


@main.group()
def tables() -> None:
    """Make, check or delete the DynamoDB table that the settings name."""


@tables.command()
def create() -> None:
    """Make the table, wait until it can be used, and let it delete what has expired.

    Safe to repeat. A table that is there is not changed, but for a time to live that
    is missing.
    """
    from service.stores.dynamodb import table

    name, made = _with_table(table.create)
    print(f"{name}: {'made' if made else 'there already, and as it should be'}")


@tables.command(name="check")
def check_table() -> None:
    """Compare the table with what it should be; exit status 1 if it is not that."""
    from service.stores.dynamodb import table

    name, problems = _with_table(table.check)
    for problem in problems:
        print(f"{name}: {problem}")
    if problems:
        sys.exit(1)
    print(f"{name}: as it should be")


@tables.command()
@click.confirmation_option(prompt="Delete the table, and everything in it, for ever?")
def delete() -> None:
    """Delete the table with everything in it."""
    from service.stores.dynamodb import table

    name, deleted = _with_table(lambda client, _: table.delete(client))
    print(f"{name}: {'deleted' if deleted else 'there was none'}")


def _with_table(
    work: Callable[[Client, DynamodbSettings], Coroutine[Any, Any, T]],
) -> tuple[str, T]:
    """Do *work* with a client; return the table's name and what came of it."""
    # Only here: boto3 takes a while to import.
    from service.core.clock import SystemClock
    from service.stores.dynamodb.client import opened

    async def run(settings: DynamodbSettings) -> T:
        async with opened(settings, SystemClock()) as client:
            return await work(client, settings)

    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    try:
        settings = load(os.environ, {}).dynamodb
        return settings.table, asyncio.run(run(settings))
    except SteadwireError as error:
        _refuse(error)


def _without_none(sections: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        name: {key: value for key, value in section.items() if value is not None}
        for name, section in sections.items()
    }


def _refuse(error: SteadwireError) -> NoReturn:
    text = " ".join(str(error).split())
    print(f"steadwire: {text}", file=sys.stderr)
    raise SystemExit(_MISCONFIGURED)


def _announcement(settings: Settings, api_key: str) -> Callable[[list[str]], None]:
    # A key that somebody chose is a secret; one made up for this run is of no use
    # unless it is shown.
    made_up = not settings.api.has_keys
    shown = api_key if made_up else "$STEADWIRE_API_KEY"
    where = "" if made_up else " (where STEADWIRE_API_KEY is the key)"

    def announce(addresses: list[str]) -> None:
        # The API's address is the last: its own, or that of clients.
        clients, api = addresses[0], addresses[-1]
        example = (
            f"Publish a message{where}:\n\n"
            f"curl -sS {api}/api/publish -H 'Content-Type: application/json' "
            f'-H "X-API-Key: {shown}" '
            """-d '{"channel":"chat","data":{"text":"hello"}}'\n"""
        )
        if not shown:
            example = (
                "The server API refuses everybody: set api.key (`steadwire keys` makes "
                "one) or api.keys_file\n"
            )
        # At once, and before the process ends if it is a pipe.
        print(
            f"Steadwire, {settings.environment}\n"
            f"  WebSocket  {clients.replace('http', 'ws', 1)}/connection/websocket\n"
            f"  API        {api}/api\n"
            f"  health     {clients}/health/ready\n"
            f"\n{example}",
            flush=True,
        )

    return announce
