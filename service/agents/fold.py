"""Fold: what a thread's log adds up to, at one offset.

It is made from segments and from the log after them (`service.agents.thread`), never
from anything else: so it is the same in every process, and after every restart. An
event that was erased leaves a gap in it, and no more.

Bounds: finished runs leave when the whole takes more than `THREAD_SIZE`, the oldest
first; a live run may take `RUN_SIZE`, beyond which its events are refused. Of the ids
of runs, the newest `RUNS` are known.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from service.agents.chunks import Chunks, Lane
from service.agents.events import AgentEvent, dump, read_event
from service.agents.messages import Conversation
from service.agents.order import Order
from service.agents.transcript import Single, Stream, Transcript
from service.core.model import RawJson

__all__ = ["RUN_SIZE", "THREAD_SIZE", "Fold", "Snapshot"]

THREAD_SIZE = 4 * 1024 * 1024  # bytes of a thread in memory
RUN_SIZE = 2 * 1024 * 1024  # bytes of a live run in memory, compacted
RUNS = 1000  # ids of a thread's runs (count)


class Snapshot(NamedTuple):
    """A thread, or the begin of a stream of it, at one offset.

    Attributes:
        offset: The offset of the last event in it; what follows begins after it.
        epoch: The name of the run of offsets.
        events: The events, as JSON text.
        complete: False if runs that are too old are not in it any more.
        live: The id of the run that has no terminal event yet, "" for none.
    """

    offset: int
    epoch: str
    events: list[RawJson]
    complete: bool
    live: str


class KnownRun(NamedTuple):
    """A run of the thread.

    Attributes:
        start: The offset of its RUN_STARTED.
        end: That of its terminal event; 0 while it lives.
    """

    start: int
    end: int


class _Segment(msgspec.Struct, rename={"since": "from"}, omit_defaults=True):
    """A part of a thread, compacted: the events above *since*, up to *upto*."""

    epoch: str
    since: int
    upto: int
    events: list[msgspec.Raw]
    runs: dict[str, tuple[int, int]] = {}
    lanes: list[tuple[str | None, str, str, dict[str, Any]]] = []


class Fold:
    """The state of one thread.

    Attributes:
        thread: The thread's id.
        offset: The newest offset that is in it.
        epoch: The name of the run of offsets.
        kept: The offset up to which segments hold the thread.
        order: What the run has open.
        transcript: The thread, compacted.
        segment: The part of it above `kept`.
        runs: The runs that are known, by id, the oldest first.
        complete: False if something is missing at its begin, or was erased.
    """

    def __init__(self, thread: str, epoch: str) -> None:
        self.thread = thread
        self.offset = 0
        self.epoch = epoch
        self.kept = 0
        self.order = Order()
        self.transcript = Transcript()
        self.segment = Transcript()
        self.runs: dict[str, KnownRun] = {}
        self.complete = True
        self._changed: dict[str, KnownRun] = {}
        self._run_began = 0  # the transcript's size then

    @property
    def live(self) -> str:
        """The id of the run that lives, "" for none."""
        return self.order.run if self.order.live else ""

    @property
    def run_size(self) -> int:
        """Bytes that the live run takes."""
        return self.transcript.size - self._run_began if self.order.live else 0

    def take(self, offset: int, event: AgentEvent | None) -> None:
        """Take in the event of the next offset; None for one that was erased."""
        self.offset = offset
        if event is None:
            self.complete = False
            return
        if event.type == "RUN_STARTED":
            self._note_run(event.fields["runId"], KnownRun(offset, 0))
            self._run_began = self.transcript.size
        written = self.order.follow(event)
        text = event.text if len(written) == 1 else ""
        for fields in written:
            own = text or (event.text if fields is event.fields else "")
            self.transcript.add(fields, own)
            self.segment.add(fields, own)
        if event.type in ("RUN_FINISHED", "RUN_ERROR"):
            run = self.order.run
            start = self.runs[run].start if run in self.runs else offset
            self._note_run(run, KnownRun(start, offset))
            self._trim()

    def _note_run(self, run: str, known: KnownRun) -> None:
        self.runs.pop(run, None)
        self.runs[run] = self._changed[run] = known
        while len(self.runs) > RUNS:
            del self.runs[next(iter(self.runs))]

    def _trim(self) -> None:
        while self.transcript.size > THREAD_SIZE and self.transcript.drop_oldest_run():
            self.complete = False

    def message_ids(self) -> set[str]:
        """Return the ids of the messages that the thread has."""
        talk = Conversation(self.transcript.entries, set())
        return {message["id"] for message in talk.messages}

    # Segments.

    def make_segment(self) -> RawJson:
        """Return what is above `kept` as a segment, for the store."""
        lanes, changed = self.order.chunks.lanes, self._changed.items()
        return RawJson(
            msgspec.json.encode(
                _Segment(
                    self.epoch,
                    self.kept,
                    self.offset,
                    [msgspec.Raw(text.encode()) for text in self.segment.events()],
                    {name: (run.start, run.end) for name, run in changed},
                    [(owner, *lane) for owner, lane in lanes.items()],
                )
            ).decode()
        )

    def cut_segment(self) -> None:
        """Begin a new segment: the one up to here was handed to the store."""
        self.kept = self.offset
        self.segment = Transcript()
        self._changed = {}

    def take_segment(self, text: str) -> None:
        """Take in a stored segment; one that was erased leaves a gap."""
        try:
            segment = msgspec.json.decode(text, type=_Segment)
        except msgspec.DecodeError:
            self.complete = False
            return
        if segment.epoch != self.epoch or segment.since < self.offset:
            return  # of a stream that is over, or stored by another process before
        if segment.since > self.offset:
            self.complete = False
        for name, (start, end) in segment.runs.items():
            if not end:
                self._run_began = self.transcript.size
            self._note_run(name, KnownRun(start, end))
        self.order.chunks = Chunks()  # all is written out in a segment
        for raw in segment.events:
            event = read_event(bytes(raw).decode())
            if event is not None:
                for fields in self.order.follow(event):
                    self.transcript.add(fields, event.text)
        for owner, kind, entity, opener in segment.lanes:
            self.order.chunks.lanes[owner] = Lane(kind, entity, opener)
        self.offset = segment.upto
        self._changed = {}
        self.kept = segment.upto
        self._trim()

    def skip(self, offset: int) -> None:
        """Pass over events that neither the segments nor the log have."""
        self.complete = False
        self.offset = offset

    # What is handed out.

    def snapshot(self) -> Snapshot:
        """Return the thread, compacted."""
        return self._snapshot_of(self.transcript.events())

    def prelude(self) -> Snapshot:
        """Return the begin of a stream that goes on with the event after this offset.

        It has what AG-UI's clients demand: RUN_STARTED, MESSAGES_SNAPSHOT, the state,
        and a start and one content for all that is open. Where no run lives, it is the
        last run's start, its messages and its terminal event. It is empty for a thread
        without events.
        """
        started, ended, subagents = self._landmarks()
        if not self.order.run:
            return self._snapshot_of([])
        fields = {"threadId": self.thread, "runId": self.order.run}
        known = {} if started is None else started.fields
        # Without the input, whose messages would come before those of earlier runs.
        fields.update({key: known[key] for key in known if key != "input"})
        events = [dump({"type": "RUN_STARTED", **fields}).text]
        streams = self.transcript.open_streams()
        talk = Conversation(self.transcript.entries, {id(stream) for stream in streams})
        events.append(
            dump({"type": "MESSAGES_SNAPSHOT", "messages": talk.messages}).text
        )
        if talk.has_state:
            events.append(dump({"type": "STATE_SNAPSHOT", "snapshot": talk.state}).text)
        if not self.order.live:
            return self._snapshot_of(events + (ended.events() if ended else []))
        for entry in subagents:
            events += entry.events()
        events += self._open_steps()
        events += self._open_streams(streams)
        return self._snapshot_of(events)

    def _snapshot_of(self, events: list[RawJson]) -> Snapshot:
        return Snapshot(self.offset, self.epoch, events, self.complete, self.live)

    def _landmarks(self) -> tuple[Single | None, Single | None, list[Single]]:
        """Return the last run's start, its terminal event, and those of subagents."""
        subagents: list[Single] = []
        ended: Single | None = None
        for entry in reversed(self.transcript.entries):
            if not isinstance(entry, Single):
                continue
            if entry.type in ("RUN_FINISHED", "RUN_ERROR"):
                if ended is not None or self.order.live:
                    break
                ended = entry
            elif entry.type == "RUN_STARTED":
                if entry.fields["runId"] == self.order.run:
                    return entry, ended, subagents[::-1]
                break
            elif entry.type.startswith("SUBAGENT_"):
                subagents.append(entry)
        return None, ended, subagents[::-1]

    def _open_steps(self) -> list[RawJson]:
        found = []
        for owner, name in self.order.steps:
            fields: dict[str, Any] = {"type": "STEP_STARTED", "stepName": name}
            found.append(_tagged(fields, owner))
        for entity, owner in self.order.open.get("reasoning", {}).items():
            fields = {"type": "REASONING_START", "messageId": entity}
            found.append(_tagged(fields, owner))
        return found

    def _open_streams(self, streams: list[Stream]) -> list[RawJson]:
        lanes = self.order.chunks.lanes
        by_chunks = {(lane.kind, lane.id) for lane in lanes.values()}
        events: list[RawJson] = []
        chunks: list[RawJson] = []
        for stream in streams:
            if (stream.kind, stream.id) in by_chunks:
                # Opened for a client as it was for others: chunks without an id follow.
                chunks.append(_as_chunk(stream))
            else:
                events += stream.events()
        return events + chunks


def _tagged(fields: dict[str, Any], owner: str | None) -> RawJson:
    return dump(fields if owner is None else {**fields, "subagentRunId": owner}).text


def _as_chunk(stream: Stream) -> RawJson:
    start, content = stream.start or {}, stream.content()
    fields = {key: value for key, value in start.items() if key != "metadata"}
    fields["type"] = {
        "text": "TEXT_MESSAGE_CHUNK",
        "tool": "TOOL_CALL_CHUNK",
        "reasoning": "REASONING_MESSAGE_CHUNK",
    }[stream.kind]
    if stream.kind == "reasoning":
        fields.pop("role", None)
    if content is not None:
        fields["delta"] = content["delta"]
    metadata = {**start.get("metadata", {}), **(stream.metadata or {})}
    return dump({**fields, "metadata": metadata} if metadata else fields).text
