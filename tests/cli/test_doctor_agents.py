"""`steadwire doctor` on the agents of the settings: none is run."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator

import pytest

from service.cli.doctor.agents import examine_agents
from service.settings import load
from tests.harness.ports import free_port


@pytest.fixture
def listening() -> Iterator[tuple[int, list[str]]]:
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_OPTIONS(self) -> None:
            asked.append(str(self.headers["Authorization"]))
            self.send_response(405)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1], asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_each_agent_is_asked_for_its_options(listening: tuple[int, list[str]]) -> None:
    port, asked = listening
    agents = [
        {
            "name": "there",
            "url": f"http://127.0.0.1:{port}/run",
            "headers": {"Authorization": "Bearer x"},
        },
        {"name": "gone", "url": f"http://127.0.0.1:{free_port()}/run"},
    ]
    settings = load({"STEADWIRE_AGENTS": json.dumps(agents)}, {})
    there, gone = examine_agents(settings)
    assert (there.level, there.text) == ("ok", "there can be reached")
    assert gone.level == "problem" and gone.remedy
    assert gone.text == "gone cannot be reached: Connection refused"
    assert asked == ["Bearer x"]
    assert list(examine_agents(load({}, {}))) == []


def test_a_missing_package_is_a_problem_only_for_agents_of_the_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.cli.doctor.agents.find_spec", lambda name: None)
    (page,) = examine_agents(load({}, {}))
    assert (page.level, page.remedy) == ("note", "pip install 'steadwire[agents]'")
    named = json.dumps([{"name": "x", "url": f"http://127.0.0.1:{free_port()}/"}])
    levels = [
        each.level for each in examine_agents(load({"STEADWIRE_AGENTS": named}, {}))
    ]
    assert levels == ["problem", "problem"]  # and it cannot be reached
    key = {"STEADWIRE_TOKEN_HMAC_SECRET_KEY": "k" * 48}
    assert list(examine_agents(load(key, {}))) == []  # no page
