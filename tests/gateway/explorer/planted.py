"""Planted bugs, each a rule of the delivery protocol that is left out.

`bugs/NAME.patch` takes the rule out of the code, and random paths or the exploration of
its bounds must find that out. `python -m tests.gateway.explorer.planted NAME` explores
the tree that it is started in, and prints what it finds.
"""

from __future__ import annotations

import sys

from tests.gateway.explorer.admissions import AdmissionBounds
from tests.gateway.explorer.explore import explore, walk
from tests.gateway.explorer.world import Bounds

__all__ = ["BUGS"]

BUGS: dict[str, Bounds | AdmissionBounds] = {
    "released-while-a-row-is-pending": Bounds("d"),
    "an-unknown-post-is-taken-for-done": Bounds("d", is_warm=True, unknown=1),
    "a-kill-ends-with-its-push": Bounds("d", is_warm=True, unknown=2, is_late=True),
    "a-takeover-closes-nothing": Bounds("d", is_warm=True, crash=1, is_late=True),
    "rows-of-another-epoch-are-served": Bounds("dd", is_warm=True, restart=1),
    "a-hole-is-skipped": Bounds("dd", is_warm=True, removal=1),
    "a-busy-row-is-served-too": Bounds("dd", clients=2, is_warm=True, slow=1),
    "a-subscribe-reads-before-its-row": Bounds("dd"),
    "a-lower-command-wins": Bounds("d", is_warm=True, toggle=1),
    "a-resubscribe-does-not-wait": Bounds("dd", is_warm=True, toggle=1),
    "pieces-are-not-marked": Bounds("dd", piece=True, crash=1),
    "a-claim-is-not-made": Bounds("h", is_warm=True, twice=1),
    "a-claim-leaves-the-duty": Bounds("h", is_warm=True, crash=1),
    "an-append-takes-no-lease": Bounds("d", is_warm=True),
    "an-unanswered-append-is-planned-again": Bounds("d", is_warm=True, lost=1),
    "the-owner-is-not-checked-before-posts": Bounds("dd", zombie=1),
    "what-was-delivered-counts-in-the-next-epoch": Bounds("dd", restart=1),
    "a-hand-over-forgets-who-was-pending": Bounds("d", handover=1),
    "one-behind-takes-the-others-back": Bounds("ddd", clients=2, piece=True),
    # These are only seen in whole invocations.
    "an-unsubscribe-counts-by-its-arrival": Bounds(
        "d", is_warm=True, toggle=1, whole=True
    ),
    "an-unknown-reply-is-taken-for-done": Bounds(
        "dd", unknown=1, is_late=True, whole=True
    ),
    "a-row-is-active-before-its-reply": Bounds("dd", whole=True),
    "an-invocation-leaves-its-deliveries": Bounds("d", is_warm=True, whole=True),
    "an-evicted-client-stays": Bounds("d", clients=2, limit=1, whole=True),
    "an-acknowledgement-waits-for-its-delivery": Bounds("a", is_warm=True, whole=True),
    # And these in admissions.
    "an-end-is-not-fenced": AdmissionBounds(("connect a u", "sweep")),
    "a-slot-is-claimed-once": AdmissionBounds(("connect a u", "sweep")),
    "a-note-is-deleted-as-it-was-read": AdmissionBounds(("connect a u", "leave a")),
    "a-claim-is-deleted-as-it-is": AdmissionBounds(
        ("connect a u", "connect b u", "sweep")
    ),
    "a-claim-takes-the-place-of-another": AdmissionBounds(
        ("connect a u", "connect a v")
    ),
    "a-slot-is-given-back-in-any-shard": AdmissionBounds(
        ("connect a u", "connect b u", "sweep")
    ),
    "the-last-entry-goes-with-its-item": AdmissionBounds(
        ("connect a u", "pass b u"), late=1
    ),
    "an-eviction-leaves-no-notice": AdmissionBounds(
        ("connect b u",), before=("connect a u",), limit=1, crash=1
    ),
}

if __name__ == "__main__":
    bounds = BUGS[sys.argv[1]]
    found = walk(bounds, seed=1, walks=200)
    print(found.violation or explore(bounds, 10_000).violation)
