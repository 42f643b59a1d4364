"""Admissions and ends at the gateway in every order, with crashes and lost answers."""

from __future__ import annotations

import pytest

from tests.gateway.explorer.admissions import AdmissionBounds
from tests.gateway.explorer.explore import explore, walk

SMALL = {
    "a crash, lost, repeated and late calls": AdmissionBounds(
        ("connect a u",), crash=1, lost=1, again=1, late=1
    ),
    "the socket goes at the same time": AdmissionBounds(("connect a u", "leave a")),
    "two at the limit": AdmissionBounds(("connect a u", "connect b u"), limit=1),
    "one is evicted and leaves, a crash": AdmissionBounds(
        ("connect b u", "leave a"), before=("connect a u",), limit=1, crash=1
    ),
    "the limit of the deployment": AdmissionBounds(
        ("connect a u", "connect b v"), total=1
    ),
}

WHOLE = {
    "a sweep that is early, a crash": AdmissionBounds(
        ("connect a u", "sweep"), crash=1
    ),
    "the socket goes, a late call": AdmissionBounds(("connect a u", "leave a"), late=1),
    "one frame twice": AdmissionBounds(("connect a u", "connect a u")),
    "two tokens of one client": AdmissionBounds(("connect a u", "connect a v")),
    "one is evicted and leaves, lost and late": AdmissionBounds(
        ("connect b u", "leave a"), before=("connect a u",), limit=1, lost=1, late=1
    ),
    "two at the limit, a crash, a late call": AdmissionBounds(
        ("connect a u", "connect b u"), limit=1, crash=1, late=1
    ),
    "others come and go, a late call": AdmissionBounds(
        ("connect a u", "pass b u"), late=1
    ),
    "it leaves twice": AdmissionBounds(
        ("leave a", "leave a"), before=("connect a u", "connect b u"), crash=1
    ),
}

LARGE = {
    "a sweep, and another comes and goes": AdmissionBounds(
        ("connect a u", "sweep", "pass b u"), crash=1, late=1
    ),
    "three at the limit, a sweep": AdmissionBounds(
        ("connect a u", "connect b u", "connect c u", "sweep"), limit=1, crash=1
    ),
    "evictions, leaves, lost answers": AdmissionBounds(
        ("connect c u", "connect d u", "leave a", "leave c"),
        before=("connect a u", "connect b u"),
        lost=1,
        again=1,
        late=1,
    ),
    "frames twice, the limit of the deployment": AdmissionBounds(
        ("connect a u", "connect a u", "connect b v", "leave b"), total=1, late=1
    ),
}

STATES = 1_500
WALKS = 150
SEED = 20261128


@pytest.mark.requirement("R12")
@pytest.mark.parametrize("name", SMALL)
def test_every_order_of_calls(name: str) -> None:
    found = explore(SMALL[name])
    assert not found.violation, str(found)
    assert found.is_whole and found.states >= 50


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_every_order_of_more_calls(name: str) -> None:
    found = explore(WHOLE[name])
    assert not found.violation, str(found)
    assert found.is_whole and found.states >= 200


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_many_orders_of_calls(name: str) -> None:
    print(f"seed {SEED}")
    found = walk(LARGE[name], SEED, WALKS)
    assert not found.violation, str(found)
    found = explore(LARGE[name], STATES)
    assert not found.violation, str(found)
    assert found.states >= STATES
