"""Broadcasts by portions: how many publications one turn of the event loop begins."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

from service.core.errors import PERMISSION_DENIED, ReplyError
from service.core.model import Appended, Position
from service.http.api.publications import PORTION, BroadcastRequest, broadcast
from service.settings import ApiSettings


async def test_a_broadcast_begins_a_portion_in_a_turn() -> None:
    turns = [0]
    answers: list[asyncio.Future[None]] = []
    loop = asyncio.get_running_loop()

    async def publish(channel: str, draft: Any, history: Any) -> Appended:
        turns[-1] += 1
        answers.append(loop.create_future())
        await answers[-1]
        return Appended(Position(int(channel), "e"), True)

    def rules(channel: str) -> Any:
        if channel == "7":
            raise ReplyError(PERMISSION_DENIED)
        return SimpleNamespace(
            history=None, options=SimpleNamespace(delta_publish=False)
        )

    context: Any = SimpleNamespace(
        settings=ApiSettings(), publish=publish, publish_rules=rules
    )
    channels = [str(number) for number in range(3000)]
    request = BroadcastRequest(channels=channels, b64data="MQ==")
    work = asyncio.ensure_future(broadcast(context, request))
    while sum(turns) < 2999:
        assert len(turns) < 1000 and not work.done()
        turns.append(0)
        await asyncio.sleep(0)
    assert PORTION == 32
    assert max(turns) == 32
    assert len([turn for turn in turns if turn]) == 94  # 3,000 / 32, rounded up
    for answer in reversed(answers):
        answer.set_result(None)
    responses = json.loads(await work)["responses"]
    assert len(responses) == 3000
    assert responses[0] == {"result": {}}  # offset 0: without history
    assert responses[7]["error"]["code"] == 103
    assert responses[2999] == {"result": {"offset": 2999, "epoch": "e"}}
