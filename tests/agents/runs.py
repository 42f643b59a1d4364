"""Runs for tests: made by chance from a seed, and valid by the protocol."""

from __future__ import annotations

import json
from collections.abc import Sequence
from random import Random
from typing import Any

Event = dict[str, Any]


def event(kind: str, **fields: Any) -> Event:
    return {"type": kind, **fields}


def text_of(fields: Event) -> str:
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False)


def started(run: str = "r", thread: str = "t", **fields: Any) -> Event:
    return event("RUN_STARTED", threadId=thread, runId=run, **fields)


def finished(run: str = "r", thread: str = "t") -> Event:
    return event("RUN_FINISHED", threadId=thread, runId=run)


def words(*deltas: str, message: str = "m", **fields: Any) -> list[Event]:
    """Return a message of these deltas."""
    return [
        event("TEXT_MESSAGE_START", messageId=message, role="assistant", **fields),
        *(
            event("TEXT_MESSAGE_CONTENT", messageId=message, delta=delta)
            for delta in deltas
        ),
        event("TEXT_MESSAGE_END", messageId=message),
    ]


_STREAMS = {
    "message": ("TEXT_MESSAGE", "CONTENT", "messageId"),
    "call": ("TOOL_CALL", "ARGS", "toolCallId"),
    "thought": ("REASONING_MESSAGE", "CONTENT", "messageId"),
}


class _Maker:
    """A run that is being made: what it has open, and what may come next."""

    def __init__(self, rng: Random, run: str, prefix: str) -> None:
        self.rng, self.run, self.prefix = rng, run, prefix
        self.events: list[Event] = []
        self.open: dict[str, tuple[str, str | None]] = {}
        self.steps: list[tuple[str, str | None]] = []
        self.spans: list[tuple[str, str | None]] = []
        self.calls: list[str] = []
        self.messages: list[tuple[str, str | None]] = []
        self.subagents: list[str] = []
        self.activities: list[str] = []
        self.state = False
        self.number = 0

    def new(self, kind: str) -> str:
        self.number += 1
        return f"{self.prefix}{kind}{self.number}"

    def add(self, kind: str, owner: str | None = None, **fields: Any) -> None:
        if owner is not None:
            fields["subagentRunId"] = owner
        self.events.append(event(kind, **fields))

    def producer(self) -> str | None:
        return self.rng.choice([None, None, *self.subagents])

    def word(self) -> str:
        return self.rng.choice(
            ["", "a", "hé ", "wörd ", '"q" ', "\\n", "日本 ", "x" * 40]
        )

    def start(self) -> None:
        kind = self.rng.choice(list(_STREAMS))
        name, _, key = _STREAMS[kind]
        entity, owner = self.new(kind), self.producer()
        fields: dict[str, Any] = {key: entity}
        if kind == "message":
            fields["role"] = "assistant"
            self.messages.append((entity, owner))
        elif kind == "thought":
            fields["role"] = "reasoning"
        else:
            fields["toolCallName"] = "search"
            parents = [each for each, whose in self.messages if whose == owner]
            if parents and self.rng.random() < 0.5:
                fields["parentMessageId"] = self.rng.choice(parents)
            self.calls.append(entity)
        if self.rng.random() < 0.2:
            fields["metadata"] = {"k": self.number}
        self.add(f"{name}_START", owner, **fields)
        self.open[entity] = (kind, owner)

    def go_on(self) -> None:
        if not self.open:
            return self.start()
        entity = self.rng.choice(list(self.open))
        kind, owner = self.open[entity]
        name, content, key = _STREAMS[kind]
        tag = owner if self.rng.random() < 0.5 else None
        if self.rng.random() < 0.2:
            self.add(f"{name}_END", tag, **{key: entity})
            del self.open[entity]
        else:
            self.add(f"{name}_{content}", tag, **{key: entity, "delta": self.word()})

    def chunk(self) -> None:
        """Add a stream by chunks, which what follows ends."""
        kind, (name, _, key) = self.rng.choice(list(_STREAMS.items()))
        entity, owner = self.new(kind), self.producer()
        fields: dict[str, Any] = {key: entity, "delta": self.word()}
        if kind == "call":
            fields["toolCallName"] = "look"
            self.calls.append(entity)
        self.add(f"{name}_CHUNK", owner, **fields)
        for _ in range(self.rng.randrange(6)):
            named = {key: entity} if self.rng.random() < 0.3 else {}
            self.add(f"{name}_CHUNK", owner, delta=self.word(), **named)
            if self.rng.random() < 0.2:
                self.add("RAW", event={"n": self.number})

    def other(self) -> None:
        match self.rng.randrange(9):
            case 0:
                step = (self.new("step"), self.producer())
                self.steps.append(step)
                self.add("STEP_STARTED", step[1], stepName=step[0])
            case 1 if self.steps:
                name, owner = self.steps.pop(self.rng.randrange(len(self.steps)))
                self.add("STEP_FINISHED", owner, stepName=name)
            case 2:
                span = (self.new("span"), self.producer())
                self.spans.append(span)
                self.add("REASONING_START", span[1], messageId=span[0])
            case 3 if self.spans:
                name, owner = self.spans.pop(self.rng.randrange(len(self.spans)))
                self.add("REASONING_END", owner, messageId=name)
            case 4 if self.calls:
                self.add(
                    "TOOL_CALL_RESULT",
                    messageId=self.new("result"),
                    toolCallId=self.rng.choice(self.calls),
                    content=self.word(),
                )
            case 5:
                subagent = self.new("sub")
                self.subagents.append(subagent)
                self.add("SUBAGENT_STARTED", subagent, name="helper")
            case 6 if self.state:
                patch = [{"op": "add", "path": "/k", "value": self.number}]
                self.add("STATE_DELTA", delta=patch)
            case 6:
                self.state = True
                self.add("STATE_SNAPSHOT", snapshot={"n": self.number})
            case 7 if self.activities:
                self.add(
                    "ACTIVITY_DELTA",
                    messageId=self.rng.choice(self.activities),
                    activityType="plan",
                    patch=[{"op": "add", "path": "/k", "value": self.number}],
                )
            case 7:
                self.activities.append(self.new("activity"))
                self.add(
                    "ACTIVITY_SNAPSHOT",
                    messageId=self.activities[-1],
                    activityType="plan",
                    content={"n": self.number},
                )
            case _:
                self.add("CUSTOM", name="note", value=self.number)

    def close(self) -> None:
        for entity, (kind, owner) in self.open.items():
            name, _, key = _STREAMS[kind]
            self.add(f"{name}_END", owner, **{key: entity})
        for name, owner in self.spans:
            self.add("REASONING_END", owner, messageId=name)
        for name, owner in self.steps:
            self.add("STEP_FINISHED", owner, stepName=name)
        for subagent in self.subagents:
            self.add("SUBAGENT_FINISHED", subagent)


def made_run(seed: int, length: int, run: str = "r", thread: str = "t") -> list[Event]:
    """Return a run of some *length* events, all kinds among them."""
    rng = Random(seed)
    maker = _Maker(rng, run, f"{run}-")
    said = {"id": maker.new("user"), "role": "user", "content": "hello"}
    given = {"threadId": thread, "runId": run, "messages": [said]}
    maker.events.append(started(run, thread, input=given))
    while len(maker.events) < length - 20:
        choice = rng.random()
        if choice < 0.15:
            maker.start()
        elif choice < 0.7:
            maker.go_on()
        elif choice < 0.8:
            maker.chunk()
        else:
            maker.other()
    maker.close()
    maker.events.append(finished(run, thread))
    return maker.events


def texts(messages: Sequence[Event]) -> dict[str, str]:
    """Return the text of each message and the arguments of each call, by id."""
    found = {}
    for message in messages:
        if isinstance(message.get("content"), str):
            found[message["id"]] = message["content"]
        for call in message.get("toolCalls", ()):
            found[call["id"]] = call["function"]["arguments"]
    return found
