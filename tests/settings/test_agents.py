"""The agents of the settings: their mistakes, and their secrets."""

from __future__ import annotations

import json
from typing import Any

import pytest

from service.core.errors import SettingsError
from service.settings import Settings, load


def loaded(*agents: dict[str, Any]) -> Settings:
    return load({"STEADWIRE_AGENTS": json.dumps(agents)}, {})


def test_an_agent_is_read_and_its_headers_are_secrets() -> None:
    settings = loaded(
        {
            "name": "helper",
            "url": "https://agents.example/run",
            "headers": {"Authorization": "Bearer abc-123"},
            "timeout": "1m30s",
        }
    )
    (agent,) = settings.agents
    assert (agent.name, agent.url, agent.timeout) == (
        "helper",
        "https://agents.example/run",
        90.0,
    )
    assert agent.headers["Authorization"] == "Bearer abc-123"
    for text in (repr(settings), str(agent), f"{agent.headers['Authorization']}"):
        assert "abc-123" not in text


@pytest.mark.parametrize(
    ("agent", "mistake"),
    [
        ({"name": "a b", "url": "http://x"}, "agents 'a b': a name is 1 to 64"),
        ({"name": "a"}, "agents 'a': it needs a url"),
        ({"name": "a", "url": "ftp://me:pw@x"}, "'ftp://[secret]@x' is not an http"),
        ({"url": "http://x"}, "agents[0] (STEADWIRE_AGENTS): it needs a name"),
        ({"name": "a", "url": "http://x", "uri": ""}, "agents[0].uri"),
        ({"name": "a", "url": "http://x", "timeout": 0}, "agents[0].timeout"),
        ({"name": "a", "url": "http://x", "headers": {"Host": "x"}}, "'Host' is set"),
        ({"name": "a", "url": "http://x", "headers": {"Accept": ""}}, "is set by the"),
        ({"name": "a", "url": "http://x", "headers": {"a b": "x"}}, "'a b' is not the"),
        ({"name": "a", "url": "http://x", "headers": {"x": "a\nb"}}, "the value of"),
        ({"name": "a", "url": "http://x", "headers": {"x": 1}}, "agents[0].headers"),
    ],
)
def test_a_mistake_is_named(agent: dict[str, Any], mistake: str) -> None:
    with pytest.raises(SettingsError) as error:
        loaded(agent)
    assert mistake in str(error.value)


def test_a_name_stands_once() -> None:
    agent = {"name": "a", "url": "http://x"}
    with pytest.raises(SettingsError, match="agents: 'a' is defined twice"):
        loaded(agent, agent)
