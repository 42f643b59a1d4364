"""Guesses of API keys: short keys do not start, and wrong ones are throttled."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.harness.api import Api
from tests.harness.fixtures import server_with
from tests.harness.server import Server, ServerFailed

server = server_with(
    {
        "STEADWIRE_SERVER_TRUSTED_PROXIES": '["127.0.0.1/32"]',
        "STEADWIRE_LIMITS_FAILURES_PER_ADDRESS": "5",
        "STEADWIRE_LIMITS_FAILURE_BLOCK": "100",
    }
)


@pytest.mark.parametrize("path", ["/api/info", "/metrics"])
async def test_wrong_keys_are_throttled_and_a_valid_one_is_not_locked_out(
    server: Server, api: Api, path: str
) -> None:
    async def ask(key: str | None, address: str) -> tuple[int, int]:
        headers = {"X-Forwarded-For": address}
        if key is not None:
            headers["X-API-Key"] = key
        method = "GET" if path == "/metrics" else "POST"
        answer = await api.request(method, path, b"{}", headers)
        return answer.status, int(answer.headers.get("retry-after", 0))

    here = f"192.0.2.{len(path)}"
    guesses = [await ask(f"guess {n}", here) for n in range(7)]
    assert [status for status, _ in guesses] == [401] * 5 + [429] * 2
    assert all(90 < wait <= 100 for _, wait in guesses[5:])
    assert await ask(server.key, here) == (200, 0)
    assert await ask(None, here) == (401, 0)  # no key is not a guess
    assert await ask("guess", "198.51.100.1") == (401, 0)
    await server.logged("wrong API keys from one address")


@pytest.mark.parametrize("environment", ["production", "staging"])
async def test_a_short_key_does_not_start_outside_development(
    make_server: Callable[..., Server], environment: str
) -> None:
    settings = {
        "STEADWIRE_ENVIRONMENT": environment,
        "STEADWIRE_CLIENT_ALLOW_ANONYMOUS_CONNECT_WITHOUT_TOKEN": "true",
    }
    for key in ("k", "k" * 15):
        with pytest.raises(ServerFailed) as failed:
            await make_server({**settings, "STEADWIRE_API_KEY": key}).start()
        assert f"api.key has {len(key)} characters, and needs 16" in str(failed.value)
    await make_server({**settings, "STEADWIRE_API_KEY": "k" * 16}).start()


async def test_a_short_key_is_a_warning_in_development(
    make_server: Callable[..., Server],
) -> None:
    server = await make_server({"STEADWIRE_API_KEY": "k"}).start()
    await server.logged("a setting is weak")
    (weak,) = [e for e in server.log() if e["event"] == "a setting is weak"]
    assert (weak["setting"], weak["level"]) == ("api.key", "warning")
