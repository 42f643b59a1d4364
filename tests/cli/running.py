"""Commands run in the process of the test."""

from __future__ import annotations

from click.testing import CliRunner, Result

from service.cli import main
from tests.auth.keyring import SECRET

__all__ = ["KEYS", "printed", "run"]

KEYS = {"STEADWIRE_TOKEN_HMAC_SECRET_KEY": SECRET, "STEADWIRE_API_KEY": "k" * 32}


def run(*arguments: str, **env: str) -> Result:
    return CliRunner().invoke(main, arguments, env=env)


def printed(*arguments: str, **env: str) -> str:
    result = run(*arguments, **env)
    assert result.exit_code == 0, result.output
    return result.stdout
