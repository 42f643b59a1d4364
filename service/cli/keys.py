"""``steadwire keys``: make secrets for the settings, and keys of the server API."""

from __future__ import annotations

import json
import secrets
import time

import click

from service.core.errors import SteadwireError

__all__ = ["keys"]


@click.command()
@click.option("--name", help="Make a key of the server API with this name.")
@click.option(
    "--publish",
    multiple=True,
    help='It may publish to this namespace, "" for none. Repeatable.',
)
@click.option("--publish-all", is_flag=True, help="It may publish everywhere.")
@click.option("--read", is_flag=True, help="It may read everything.")
@click.option("--administer", is_flag=True, help="It may act on connections.")
@click.option("--days", type=click.IntRange(1, 36500), help="Days until it expires.")
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
            raise click.UsageError("the scope of a key needs --name")
        # 64 random bytes are enough for every HS*, and 32 for a key that is compared.
        print(f'[token]\nhmac_secret_key = "{secrets.token_urlsafe(64)}"\n')
        print(f'[api]\nkey = "{secrets.token_urlsafe(32)}"\n')
        # Not a line of the settings as it is: without broker.url it would be refused.
        print("# For several servers with a broker, the same in all of them:")
        print(f'# [broker]\n# key = "{secrets.token_urlsafe(32)}"')
        return
    from service.auth.api_keys import digest_of, read_api_keys

    key = secrets.token_urlsafe(32)
    lines = [f"[{json.dumps(name)}]", f'sha256 = "{digest_of(key).hex()}"']
    if publish_all or publish:
        lines.append(f"publish = {json.dumps(publish_all or publish)}")
    if read:
        lines.append("read = true")
    if administer:
        lines.append("administer = true")
    if days:
        lines.append(f"not_after = {int(time.time()) + 86400 * days}")
    text = "\n".join(lines)
    try:
        read_api_keys(text, publish)
    except SteadwireError as error:
        raise click.UsageError(str(error)) from None
    print(f"# The key, for its caller; it is not stored anywhere:\n# {key}\n{text}")
