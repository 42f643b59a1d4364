"""Planted bugs: each `bugs/NAME.patch` leaves a rule of runs out; a test notices it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.process import ROOT
from tests.requirements.prove import Copy

PATCHES = Path(__file__).with_name("bugs")

# The test that notices each.
BUGS = {
    "a-cancel-closes-nothing": "agents/test_writer.py::"
    "test_a_cancelled_run_is_closed_in_order_and_takes_nothing_more",
    "a-commit-meanwhile-wakes-nobody": "agents/test_thread.py::"
    "test_a_commit_while_a_viewer_reads_is_not_forgotten",
    "a-cursor-skips-an-event": "e2e/test_thread_events.py::"
    "test_a_viewer_that_is_cut_between_each_two_events_misses_and_doubles_nothing[sqlite]",
    "a-dead-process-lives": "agents/test_threads.py::"
    "test_another_server_ends_the_runs_of_one_that_died",
    "a-feed-stays-behind": "agents/test_feed.py::"
    "test_a_viewer_gets_each_event_once_in_every_order",
    "a-foreign-thread-is-shown": "e2e/test_thread_access.py::"
    "test_a_run_reaches_those_who_may_read_its_thread",
    "a-hole-is-passed-over": "agents/test_writer.py::"
    "test_a_hole_in_the_log_ends_the_run_once",
    "a-live-run-is-silent": "http/agui/test_viewer.py::"
    "test_events_with_their_offsets_and_signs_of_life_between",
    "a-repeat-is-stored-twice": "e2e/test_ingest.py::"
    "test_cut_after_each_event_and_repeated_nothing_is_lost_or_doubled[sqlite]",
    "a-run-passes-its-window": "agents/test_thread.py::"
    "test_a_run_waits_while_its_segments_cannot_be_stored",
    "a-stream-passes-its-end": "http/agui/test_viewer.py::"
    "test_a_stream_of_one_run_ends_with_it",
    "an-event-has-no-version": "agents/test_threads.py::"
    "test_a_server_that_was_thought_dead_stores_nothing_more",
    "an-offset-is-folded-twice": "agents/test_thread.py::"
    "test_an_event_that_is_read_before_it_is_confirmed_is_taken_in_once",
    "anybody-cancels": "e2e/test_thread_access.py::"
    "test_the_same_run_id_is_another_run_in_another_thread",
    "no-agent-may-come-back": "agents/test_threads.py::"
    "test_an_agent_that_pushes_has_its_lease_to_come_back",
    "nobody-steps-aside": "agents/test_threads.py::"
    "test_an_agent_may_go_on_at_another_server",
    "segments-may-overlap": "agents/test_fold.py::"
    "test_a_segment_that_begins_in_another_one_is_passed_over",
    "threads-take-all-memory": "agents/test_threads.py::"
    "test_threads_have_so_much_memory_and_idle_ones_leave",
    "what-is-stored-is-repeated": "agents/test_writer.py::"
    "test_an_event_that_was_stored_though_it_failed_is_not_doubled",
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    copy = Copy(tmp_path_factory.mktemp("planted"))
    copy.check()
    return copy


def test_every_patch_has_its_test_and_applies() -> None:
    assert {path.stem for path in PATCHES.glob("*.patch")} == BUGS.keys()
    for path in PATCHES.glob("*.patch"):
        subprocess.run(["git", "apply", "--check", path], cwd=ROOT, check=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_noticed(copy: Copy, name: str) -> None:
    variables = {"PYTHONPATH": str(copy.folder), "PYTHONDONTWRITEBYTECODE": "1"}
    with copy.patched(PATCHES / f"{name}.patch"):
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
                f"tests/{BUGS[name]}",
            ],
            cwd=copy.folder,
            env=os.environ | variables,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed" in done.stdout
