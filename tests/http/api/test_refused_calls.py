"""Bad requests of the server API: the log says which field, and at a bounded rate."""

from __future__ import annotations

import json

import pytest
from structlog.testing import capture_logs

from service.http.api.refused_calls import RefusedCalls
from tests.clock import VirtualClock
from tests.harness.server import Server


def test_five_lines_a_second_and_the_rest_is_counted() -> None:
    clock = VirtualClock()
    refused = RefusedCalls(clock)
    with capture_logs() as logs:
        for _ in range(7):
            refused.add("publish", "backend", "no data")
        clock.advance(1.0)
        refused.add("publish", "backend", "no data")
        refused.add("publish", "backend", "no data")
    assert [line.get("not_logged") for line in logs] == [*[None] * 5, 2, None]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ('{"channel":"a"}', "data is missing"),
        ('{"data":"hidden"}', "missing required field `channel`"),
        (
            '{"channel":["hidden"],"data":1}',
            "Expected `str`, got `array` - at `$.channel`",
        ),
        ('{"hidden":', "not a JSON object"),
    ],
)
async def test_the_log_says_which_field_and_not_what_was_in_it(
    server: Server, body: str, reason: str
) -> None:
    before = len(server.output())
    async with server.api() as api:
        headers = {"X-API-Key": server.key}
        answer = await api.request(
            "POST", "/api/publish", body.encode(), headers=headers
        )
    error = json.loads(answer.body)
    assert error.get("error", error) == {"code": 107, "message": "bad request"}
    await server.logged(reason)
    written = server.output()[before:]
    assert '"method": "publish"' in written and "hidden" not in written
