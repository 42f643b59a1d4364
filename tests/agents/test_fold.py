"""Snapshots and preludes, held against what AG-UI's own client makes of the log."""

from __future__ import annotations

import json
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest

from service.agents.events import parse_event
from service.agents.fold import Fold
from service.agents.json_patch import PatchFailed, apply_patch
from tests.agents.runs import (
    event,
    finished,
    made_run,
    started,
    text_of,
    texts,
    words,
)
from tests.harness.agui import Judge

Events = list[dict[str, Any]]


def folded(events: Sequence[dict[str, Any]], fold: Fold | None = None) -> Fold:
    fold = fold or Fold("t", "e")
    for fields in events:
        fold.take(fold.offset + 1, parse_event(text_of(fields)))
    return fold


def objects(texts: Sequence[str]) -> Events:
    return [json.loads(text) for text in texts]


def check_at_all_positions(run: Events, judge: Judge) -> None:
    """Join *run* after each of its events; every viewer ends with the same."""
    (whole,) = judge.reduce([run])
    assert whole["failed"] == [] and len(whole["messages"]) > 5
    fold, streams = Fold("t", "e"), []
    for position, fields in enumerate(run, 1):
        folded([fields], fold)
        streams.append([*objects(fold.prelude().events), *run[position:]])
        streams.append([*objects(fold.snapshot().events), *run[position:]])
    assert set(judge.verify(streams[::2])) == {None}
    for position, seen in enumerate(judge.reduce(streams[::2]), 1):
        assert seen == whole, position
    # A snapshot is of the thread, not the begin of a stream: but at the end it is all.
    (last,) = judge.reduce([streams[-1]])
    assert last == whole


@pytest.mark.requirement("B67")
def test_a_segment_that_begins_in_another_one_is_passed_over() -> None:
    """Two processes have stored the begin of a run, and one of them more of it."""
    run = [started(), *words("a", "b", "c"), finished()]
    short, long = folded(run[:3]).make_segment(), folded(run[:5]).make_segment()
    fold = Fold("t", "e")
    for segment in (short, long):
        fold.take_segment(segment)
    assert fold.offset == fold.kept == 3
    assert folded(run[3:], fold).snapshot() == folded(run).snapshot()


@pytest.mark.requirement("R44", "B1", "B126")
@pytest.mark.parametrize("seed", [11, 12])
def test_a_viewer_that_joins_anywhere_has_the_same_in_the_end(
    seed: int, judge: Judge
) -> None:
    check_at_all_positions(made_run(seed, 80), judge)


@pytest.mark.slow
@pytest.mark.requirement("R44", "B1", "B126")
@pytest.mark.parametrize("seed", [21, 22, 23])
def test_a_viewer_that_joins_a_long_run_anywhere_has_the_same_in_the_end(
    seed: int, judge: Judge
) -> None:
    check_at_all_positions(made_run(seed, 300), judge)


@pytest.mark.requirement("B67")
def test_a_second_run_is_joined_with_the_messages_of_the_first(judge: Judge) -> None:
    first, second = made_run(31, 60, "r1"), made_run(32, 60, "r2")
    (whole,) = judge.reduce([[*first, *second]])
    fold = folded(first)
    streams = [[*objects(fold.prelude().events), *second]]
    for position, fields in enumerate(second, 1):
        folded([fields], fold)
        streams.append([*objects(fold.prelude().events), *second[position:]])
    assert set(judge.verify(streams)) == {None}
    for seen in judge.reduce(streams):
        assert seen == whole


@pytest.mark.requirement("R44")
@pytest.mark.parametrize("seed", range(10))
def test_segments_cut_anywhere_make_the_same_thread(seed: int) -> None:
    rng = Random(seed)
    run = [*made_run(seed, 120, "r1"), *made_run(seed + 50, 120, "r2")]
    whole, stored = Fold("t", "e"), []
    again = Fold("t", "e")
    for fields in run:
        folded([fields], whole)
        if rng.random() < 0.1:
            stored.append(whole.make_segment())
            whole.cut_segment()
            again = Fold("t", "e")
            for text in stored:
                again.take_segment(text)
            assert again.offset == whole.offset and again.complete
            assert again.prelude() == whole.prelude()
            assert again.snapshot() == whole.snapshot()
            assert again.order.chunks.lanes == whole.order.chunks.lanes
            assert again.runs == whole.runs
    assert len(stored) > 10


def test_segments_that_overlap_or_are_of_another_epoch_are_passed_over() -> None:
    fold = folded([started(), *words("a", "b")])
    segment = fold.make_segment()
    again = Fold("t", "e")
    again.take_segment(segment)
    again.take_segment(segment)
    assert again.snapshot() == fold.snapshot()
    other = Fold("t", "another")
    other.take_segment(segment)
    assert other.offset == 0


def test_what_was_erased_leaves_a_gap() -> None:
    fold = Fold("t", "e")
    fold.take(1, None)
    folded([*words("a"), finished()], fold)
    assert not fold.complete
    assert not Fold("t", "e").prelude().events
    assert fold.runs["r"].end == fold.offset
    fold.take_segment("null")
    assert len(fold.snapshot().events) == 4


@pytest.mark.requirement("R44", "B1", "B126")
def test_2000_deltas_are_5_events_for_who_comes_late(judge: Judge) -> None:
    deltas = [f"word{number} " for number in range(2000)]
    run = [started(), *words(*deltas), finished()]
    fold = folded(run)
    snapshot = objects(fold.snapshot().events)
    assert len(snapshot) == 5 and len(fold.prelude().events) == 3
    assert snapshot == judge.compact([run])[0]
    for stream in (snapshot, objects(fold.prelude().events)):
        (seen,) = judge.reduce([stream])
        assert texts(seen["messages"]) == {"m": "".join(deltas)}


@pytest.mark.requirement("B131")
def test_it_is_compacted_as_the_protocols_own_client_does(judge: Judge) -> None:
    call = {"toolCallId": "c", "toolCallName": "f", "parentMessageId": "m"}
    run = [
        started(),
        event("STATE_SNAPSHOT", snapshot={"a": {"b": [1]}}),
        *words("a", "b", "c"),
        event("TOOL_CALL_START", **call),
        event("TOOL_CALL_ARGS", toolCallId="c", delta='{"q":'),
        event("TOOL_CALL_ARGS", toolCallId="c", delta="1}", metadata={"k": 1}),
        event("TOOL_CALL_END", toolCallId="c"),
        event("TOOL_CALL_RESULT", messageId="x", toolCallId="c", content="2"),
        event("CUSTOM", name="n", value=None),
        *words("d", message="m2"),
    ]
    deltas = [
        event("STATE_DELTA", delta=[{"op": "add", "path": "/a/b/-", "value": 2}]),
        event("STATE_DELTA", delta=[{"op": "remove", "path": "/nothing"}]),
        event("STATE_DELTA", delta=[{"op": "replace", "path": "/a/b/0", "value": 0}]),
    ]
    compacted = objects(folded([*run, *deltas, finished()]).snapshot().events)
    (theirs,) = judge.compact([[*run, *deltas, finished()]])
    # They put a run's state before its end, this before what followed it first.
    assert [each for each in theirs if each["type"] != "STATE_SNAPSHOT"] == [
        each for each in compacted if each["type"] != "STATE_SNAPSHOT"
    ]
    states = [
        [each for each in events if each["type"] == "STATE_SNAPSHOT"]
        for events in (compacted, theirs)
    ]
    assert states[0] == states[1] and states[0][0]["snapshot"] == {"a": {"b": [0, 2]}}


def test_a_thread_that_is_too_large_forgets_its_oldest_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.agents.fold.THREAD_SIZE", 20_000)
    fold = Fold("t", "e")
    for number in range(20):
        run = [started(f"r{number}"), *words("x" * 3000, message=f"m{number}")]
        folded([*run, finished(f"r{number}")], fold)
    assert fold.transcript.size < 20_000 and not fold.complete
    ids = [each["id"] for each in objects(fold.prelude().events)[1]["messages"]]
    assert ids == [f"m{number}" for number in range(15, 20)]
    assert len(fold.runs) == 20  # their ids are known all the same


@pytest.mark.parametrize(
    ("before", "patch", "after"),
    [
        ({}, [{"op": "add", "path": "/a", "value": 1}], {"a": 1}),
        ([1], [{"op": "add", "path": "/0", "value": 0}], [0, 1]),
        ([1], [{"op": "add", "path": "/-", "value": 2}], [1, 2]),
        ({"a/b": 1, "m~n": 2}, [{"op": "remove", "path": "/a~1b"}], {"m~n": 2}),
        ({"m~n": 2}, [{"op": "replace", "path": "/m~0n", "value": 3}], {"m~n": 3}),
        ({"a": 1}, [{"op": "move", "from": "/a", "path": "/b"}], {"b": 1}),
        (
            {"a": [1]},
            [{"op": "copy", "from": "/a", "path": "/b"}],
            {"a": [1], "b": [1]},
        ),
        ({"a": 1}, [{"op": "replace", "path": "", "value": 7}], 7),
        ({"a": 1}, [{"op": "test", "path": "/a", "value": 1}], {"a": 1}),
    ],
)
def test_patches(before: Any, patch: Events, after: Any) -> None:
    kept = json.dumps(before)
    assert apply_patch(before, patch) == after
    assert json.dumps(before) == kept


@pytest.mark.parametrize(
    "patch",
    [
        [{"op": "test", "path": "/a", "value": 2}],
        [{"op": "remove", "path": "/b"}],
        [{"op": "add", "path": "/a/b", "value": 1}],
        [{"op": "add", "path": "/l/2", "value": 1}],
        [{"op": "add", "path": "/l/01", "value": 1}],
    ],
)
def test_a_patch_that_does_not_fit_changes_nothing(patch: Events) -> None:
    with pytest.raises(PatchFailed):
        apply_patch({"a": 1, "l": [0]}, patch)
