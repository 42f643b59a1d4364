"""Every interleaving of the gateway's delivery within bounds, and random ones beyond.

The small bounds are seen whole: the number of states says so. The large ones are seen
up to a number of states, and then along random paths; a failure prints its steps. So
are those in which each frame of a client is a whole invocation (`invocations`).
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.gateway.explorer.explore import explore, walk
from tests.gateway.explorer.world import Bounds

SMALL = {
    "a subscriber joins": Bounds("d"),
    "a crash at any step": Bounds("d", is_warm=True, crash=1),
    "a POST without an answer, late": Bounds(
        "d", is_warm=True, unknown=1, is_late=True
    ),
    "a false 410, late": Bounds("d", is_warm=True, gone=1, is_late=True),
    "one that leaves and comes back": Bounds("d", is_warm=True, leave=1),
    "the epoch ends": Bounds("d", is_warm=True, restart=1),
    "the history is removed": Bounds("d", is_warm=True, removal=1),
    "a hand-over that starts twice": Bounds("h", is_warm=True, twice=1),
    "a hand-over in the middle": Bounds("d", is_warm=True, handover=1),
    "an append without an answer": Bounds("d", is_warm=True, lost=1),
}

STATES = 2_000  # of each large exploration
WALKS = 60
SEED = 20261128

LARGE = {
    "two publishers, a subscriber joins": Bounds("dd"),
    "permuted frames, a crash": Bounds("d", is_warm=True, toggle=1, crash=1),
    "a subscriber joins, an expired lease": Bounds("dd", zombie=1),
    "a subscriber joins, the epoch ends": Bounds("dd", restart=1),
    "a subscriber joins, handed over": Bounds("d", handover=1),
    "two publishers, an expired lease, late": Bounds(
        "dd", is_warm=True, zombie=1, is_late=True
    ),
    "two publishers, a crash, unknown, late": Bounds(
        "dd", is_warm=True, crash=1, unknown=1, is_late=True
    ),
    "two subscribers, a slow one": Bounds("dd", clients=2, is_warm=True, slow=1),
    "pieces, a crash, unknown, late": Bounds(
        "dd", piece=True, crash=1, unknown=1, is_late=True
    ),
    "pieces, permuted frames": Bounds("dd", piece=True, toggle=1),
    "pieces, the history is removed": Bounds("dd", piece=True, removal=1),
    "the epoch ends, a crash": Bounds("dd", is_warm=True, restart=1, crash=1),
    "the epoch ends, closed": Bounds("dd", is_warm=True, restart=1, behind="kill"),
    "removed, a connection lost": Bounds("dd", removal=1, leave=1),
    "handed over twice, a crash": Bounds("hd", is_warm=True, crash=1, twice=1),
    "handed over in the middle, expired": Bounds(
        "dd", is_warm=True, handover=1, zombie=1, is_late=True
    ),
    "appends without an answer": Bounds("dad", is_warm=True, lost=2),
    "a subscribe that is taken for dead": Bounds("dd", timeout=1, unknown=1),
    "all together": Bounds(
        "dha",
        clients=2,
        piece=True,
        crash=1,
        unknown=1,
        is_late=True,
        zombie=1,
        toggle=1,
        restart=1,
        removal=1,
        lost=1,
        handover=1,
        slow=1,
    ),
}

WHOLE_STATES = 1_000  # they take longer

WHOLE = {
    "a client connects and subscribes": Bounds("d", whole=True),
    "replies of one frame apart": Bounds("d", apart=True, whole=True),
    "permuted frames": Bounds("dd", is_warm=True, toggle=2, whole=True),
    "permuted frames, a crash": Bounds(
        "d", is_warm=True, toggle=1, crash=1, whole=True
    ),
    "one that leaves and comes back": Bounds("dd", is_warm=True, leave=1, whole=True),
    "replies without an answer, late": Bounds(
        "ad", unknown=1, gone=1, is_late=True, whole=True
    ),
    "pieces, a crash": Bounds("dd", piece=True, crash=1, whole=True),
    "the server's subscription, the epoch ends": Bounds(
        "da", clients=2, behind="kill", restart=1, leave=1, whole=True
    ),
    "acknowledged, then handed over": Bounds("a", is_warm=True, handover=1, whole=True),
    "over the server API, twice": Bounds("hd", is_warm=True, twice=1, whole=True),
    "two clients of a user who may have one": Bounds(
        "d", clients=2, limit=1, whole=True
    ),
    "all together": replace(LARGE["all together"], apart=True, leave=1, whole=True),
}


@pytest.mark.parametrize("name", SMALL)
def test_every_interleaving(name):
    found = explore(SMALL[name])
    assert not found.violation, str(found)
    assert found.is_whole
    assert found.states >= 50  # else its fault does not happen


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", LARGE)
def test_many_interleavings(name):
    found = explore(LARGE[name], STATES)
    assert not found.violation, str(found)
    print(f"seed {SEED}")
    found = walk(LARGE[name], SEED, WALKS)
    assert not found.violation, str(found)
    assert found.states > WALKS


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_whole_invocations(name):
    print(f"seed {SEED}")
    found = walk(WHOLE[name], SEED, WALKS)
    assert not found.violation, str(found)
    assert found.states > WALKS
    found = explore(WHOLE[name], WHOLE_STATES)
    assert not found.violation, str(found)
    assert found.states > 100
