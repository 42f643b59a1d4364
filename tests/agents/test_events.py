"""What is an event, and what is refused at the door."""

from __future__ import annotations

import pytest

from service.agents.errors import Refused
from service.agents.events import parse_event
from tests.agents.runs import made_run, text_of


@pytest.mark.requirement("R41", "L19", "B119")
def test_every_kind_of_event_is_taken_verbatim() -> None:
    kinds = set()
    for each in made_run(1, 400):
        text = text_of(each)
        event = parse_event(text)
        assert (event.text, event.fields, event.type) == (text, each, each["type"])
        kinds.add(event.type)
    assert len(kinds) >= 22


@pytest.mark.requirement("R41", "L19", "B119")
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "it is not JSON"),
        ("[]", "object"),
        ("{}", "type"),
        ('{"type":"AGENT_STARTED"}', "type"),
        ('{"type":"text_message_end","messageId":"m"}', "type"),
        ('{"type":"TEXT_MESSAGE_END"}', "messageId"),
        ('{"type":"TEXT_MESSAGE_END","message_id":"m"}', "messageId"),
        ('{"type":"TEXT_MESSAGE_CONTENT","messageId":"m","delta":1}', "delta"),
        ('{"type":"STEP_STARTED","stepName":"s","subagentRunId":null}', "null"),
        ('{"type":"RUN_ERROR","message":"\\ud800"}', ""),
    ],
)
def test_what_is_no_event_of_the_protocol_is_refused(text: str, reason: str) -> None:
    with pytest.raises(Refused) as refused:
        parse_event(text)
    assert refused.value.code == "invalid_event"
    assert reason in refused.value.reason
    assert not refused.value.temporary


def test_an_event_that_is_too_large_is_refused() -> None:
    text = text_of({"type": "RUN_ERROR", "message": "x" * (256 * 1024)})
    with pytest.raises(Refused, match="too_large"):
        parse_event(text)
