"""The order rules, held against ``verifyEvents`` of npm ``@ag-ui/client``."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from service.agents.errors import Refused
from service.agents.events import parse_event, read_event
from service.agents.order import Order
from tests.agents.runs import event, finished, made_run, started, text_of, words
from tests.harness.agui import Judge


def admits(order: Order, fields: dict[str, Any]) -> str:
    """Return why an event is refused, "" if it is not."""
    try:
        order.admit(parse_event(text_of(fields)))
    except Refused as refused:
        return refused.code
    return ""


def any_event(rng: Random) -> dict[str, Any]:
    """Return an event that may be in or out of order; few ids, so that they meet."""
    name = rng.choice("ab")
    roles = {"TEXT_MESSAGE": "user", "REASONING_MESSAGE": "reasoning"}
    made = rng.choice(
        [
            *(
                event(f"{kind}_{part}", messageId=name, **fields)
                for kind in ("TEXT_MESSAGE", "REASONING_MESSAGE")
                for part, fields in (
                    ("START", {"role": roles[kind]}),
                    ("CONTENT", {"delta": "x"}),
                    ("END", {}),
                    ("CHUNK", {"delta": "x"}),
                )
            ),
            event("TEXT_MESSAGE_CHUNK", delta="x"),
            event("REASONING_MESSAGE_CHUNK", delta="x"),
            event("TOOL_CALL_START", toolCallId=name, toolCallName="f"),
            event(
                "TOOL_CALL_START",
                toolCallId=name,
                toolCallName="f",
                parentMessageId="a",
            ),
            event("TOOL_CALL_ARGS", toolCallId=name, delta="1"),
            event("TOOL_CALL_END", toolCallId=name),
            event("TOOL_CALL_CHUNK", toolCallId=name, toolCallName="f", delta="1"),
            event("TOOL_CALL_CHUNK", delta="1"),
            event("TOOL_CALL_RESULT", messageId=name, toolCallId=name, content="1"),
            event("REASONING_START", messageId=name),
            event("REASONING_END", messageId=name),
            event("STEP_STARTED", stepName=name),
            event("STEP_FINISHED", stepName=name),
            event("ACTIVITY_SNAPSHOT", messageId=name, activityType="p", content={}),
            event("ACTIVITY_DELTA", messageId=name, activityType="p", patch=[]),
            event(
                "REASONING_ENCRYPTED_VALUE",
                subtype=rng.choice(["message", "tool-call"]),
                entityId=name,
                encryptedValue="x",
            ),
            event(
                "MESSAGES_SNAPSHOT",
                messages=[{"id": name, "role": "user", "content": "x"}],
            ),
            event("STATE_SNAPSHOT", snapshot={}),
            event("RAW", event=1),
            started(),
            finished(),
            event("RUN_ERROR", message="x"),
        ]
    )
    if rng.random() < 0.3 and made["type"][:4] not in ("RUN_", "MESS"):
        made["subagentRunId"] = rng.choice("ab")
    if rng.random() < 0.1:
        made = rng.choice(
            [
                event("SUBAGENT_STARTED", subagentRunId=name, name="n"),
                event("SUBAGENT_FINISHED", subagentRunId=name),
                event("SUBAGENT_ERROR", subagentRunId=name, message="x"),
            ]
        )
    return made


@pytest.mark.requirement("R44", "L19", "B125")
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_door_decides_as_the_protocols_own_client_does(
    seed: int, judge: Judge
) -> None:
    rng, decided, streams = Random(seed), [], []
    for _ in range(150):
        order, taken = Order(), [started()]
        admits(order, taken[0])
        for _ in range(40):
            candidate = any_event(rng)
            over = not order.live
            refusal = admits(order, candidate)
            if over and candidate["type"] == "RUN_ERROR":
                # Stricter here: a run has one terminal event.
                assert refusal == "run_over"
                continue
            streams.append([*taken, candidate])
            decided.append((refusal, candidate))
            if not refusal:
                taken.append(candidate)
    verdicts = judge.verify(streams)
    differ = [
        (refusal, verdict, stream[-3:])
        for (refusal, _), verdict, stream in zip(
            decided, verdicts, streams, strict=True
        )
        if bool(refusal) != bool(verdict)
    ]
    assert not differ, differ[:3]
    refused = sum(1 for refusal, _ in decided if refusal)
    assert refused > 500 and len(decided) - refused > 1000, (refused, len(decided))


@pytest.mark.requirement("R44")
def test_what_is_refused_changes_nothing() -> None:
    rng = Random(4)
    order, twin = Order(), Order()
    for each in (order, twin):
        admits(each, started())
    for _ in range(2000):
        candidate = any_event(rng)
        if not admits(order, candidate):
            assert not admits(twin, candidate)
    assert (order.open, order.steps, order.live) == (twin.open, twin.steps, twin.live)


@pytest.mark.requirement("R44")
def test_the_order_of_the_log_is_that_of_the_door() -> None:
    for seed in range(20):
        order, log = Order(), Order()
        for fields in made_run(seed, 100):
            admitted = parse_event(text_of(fields))
            order.admit(admitted)
            log.follow(admitted)
            assert (order.open, order.steps) == (log.open, log.steps)
            assert order.chunks.lanes == log.chunks.lanes


@pytest.mark.requirement("R44")
@pytest.mark.parametrize(
    ("after", "wrong"),
    [
        ([], words("x")[1]),
        (words("x"), words("x")[1]),
        ([], event("TOOL_CALL_END", toolCallId="c")),
        (words("x")[:2], finished()),
        ([], finished("another")),
        ([], started("another")),
    ],
)
def test_an_event_out_of_order_is_refused_with_its_reason(
    after: list[dict[str, Any]], wrong: dict[str, Any]
) -> None:
    order = Order()
    for fields in [started(), *after]:
        assert admits(order, fields) == ""
    assert admits(order, wrong) == "wrong_order"


@pytest.mark.requirement("R44", "B130")
def test_nothing_follows_the_terminal_event() -> None:
    for terminal in (finished(), event("RUN_ERROR", message="x")):
        order = Order()
        for fields in (started(), terminal):
            assert admits(order, fields) == ""
        for late in (words("x")[0], finished(), event("RUN_ERROR", message="x")):
            assert admits(order, late) == "run_over"


@pytest.mark.requirement("R44")
@pytest.mark.parametrize("seed", range(5))
def test_a_run_can_be_ended_wherever_it_is(seed: int, judge: Judge) -> None:
    run = made_run(seed, 80)[:-1]
    streams = []
    order = Order()
    for position, fields in enumerate(run, 1):
        order.admit(parse_event(text_of(fields)))
        ends = [each.fields for each in order.ends()]
        streams.append([*run[:position], *ends, finished()])
        for end in ends:
            assert read_event(text_of(end)) is not None
            parse_event(text_of(end))
    assert set(judge.verify(streams)) == {None}
