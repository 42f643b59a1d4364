"""Explores a `World`: every order of its steps and faults, as far as its bounds allow.

Coroutines cannot be copied, so each path is run again from the beginning, up to where
it differs from one that was run before. A path ends where a state was seen before, and
where nothing more happens: then everybody must have everything.
"""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple, NoReturn
from unittest.mock import patch

import structlog

from service.gateway import rounds, subscribing
from tests.gateway.explorer.admissions import AdmissionBounds, AdmissionWorld
from tests.gateway.explorer.invocations import InvocationWorld, patched
from tests.gateway.explorer.loop import StepLoop
from tests.gateway.explorer.world import Bounds, Choice, Crash, Violation, World

__all__ = ["Found", "explore", "walk"]

LONGEST = 400  # steps of a path; more is a livelock


class Found(NamedTuple):
    """The result of an exploration.

    Attributes:
        states: Different states that were seen.
        violation: The guarantee that does not hold; "" if all do.
        trace: The steps to there.
        is_whole: Every state within the bounds was seen.
    """

    states: int
    violation: str = ""
    trace: tuple[str, ...] = ()
    is_whole: bool = True

    def __str__(self) -> str:
        return "\n".join((*self.trace, self.violation or f"{self.states} states"))


@contextlib.contextmanager
def _running(bounds: Bounds | AdmissionBounds) -> Iterator[StepLoop]:
    """Run a loop of steps, and log nothing: actors die in thousands."""
    before = structlog.get_config()
    loop = StepLoop()
    structlog.configure(
        processors=[partial(_note, loop)],
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        cache_logger_on_first_use=False,
    )
    recovered = 1 if bounds.piece else subscribing.RECOVERED
    window = 1 if bounds.piece else rounds.WINDOW
    try:
        with (
            patch.object(subscribing, "RECOVERED", recovered),
            patch.object(rounds, "WINDOW", window),
            patched(),
            loop.running(),
        ):
            yield loop
    finally:
        structlog.configure(**before)


def _note(loop: StepLoop, _: object, __: str, event: dict[str, Any]) -> NoReturn:
    """Note an error of our own, which the application logs and survives."""
    if event.get("error") != Crash.__name__:  # of an actor that is dead
        loop.errors.append(str(event))
    raise structlog.DropEvent


def _world(bounds: Bounds | AdmissionBounds, loop: StepLoop) -> World | AdmissionWorld:
    loop.errors.clear()
    if isinstance(bounds, AdmissionBounds):
        return AdmissionWorld(bounds, loop)
    return InvocationWorld(bounds, loop) if bounds.whole else World(bounds, loop)


def explore(bounds: Bounds | AdmissionBounds, limit: int = 1_000_000) -> Found:
    """Take every path, the shortest last; stop at *limit* states."""
    with _running(bounds) as loop:
        try:
            _world(bounds, loop).finish()
        except Violation as violation:  # before anything is explored
            return Found(0, str(violation))
        return _explore(bounds, limit, loop)


def _explore(bounds: Bounds | AdmissionBounds, limit: int, loop: StepLoop) -> Found:
    seen: set[int] = set()
    left: list[tuple[int, ...]] = [()]
    while left:
        if len(seen) >= limit:
            return Found(len(seen), is_whole=False)
        path = left.pop()
        world = _world(bounds, loop)
        trace: list[str] = []
        try:
            for index in path:
                _take(world, world.choices()[index], trace)
            while True:
                key = world.key()
                if key in seen:
                    break
                seen.add(key)
                choices = world.choices()
                if all(choice.is_fault for choice in choices):
                    world.check_end()
                if not choices:
                    break
                if len(path) > LONGEST:
                    raise Violation("LIVELOCK: it goes on for ever")
                left += [(*path, index) for index in range(1, len(choices))]
                path = (*path, 0)
                _take(world, choices[0], trace)
        except Violation as violation:
            return Found(len(seen), str(violation), tuple(trace))
        finally:
            world.finish()
    return Found(len(seen))


def walk(bounds: Bounds | AdmissionBounds, seed: int, walks: int) -> Found:
    """Take random paths; faults are as likely as other steps."""
    with _running(bounds) as loop:
        try:
            _world(bounds, loop).finish()
        except Violation as violation:
            return Found(0, str(violation))
        return _walk(bounds, random.Random(seed), walks, loop)


def _walk(
    bounds: Bounds | AdmissionBounds, rng: random.Random, walks: int, loop: StepLoop
) -> Found:
    steps = 0
    for _ in range(walks):
        world = _world(bounds, loop)
        trace: list[str] = []
        try:
            while True:
                choices = world.choices()
                if all(choice.is_fault for choice in choices):
                    world.check_end()
                if not choices:
                    break
                if len(trace) > LONGEST:
                    raise Violation("LIVELOCK: it goes on for ever")
                _take(world, rng.choice(choices), trace)
                steps += 1
        except Violation as violation:
            return Found(steps, str(violation), tuple(trace), is_whole=False)
        finally:
            world.finish()
    return Found(steps, is_whole=False)


def _take(world: World | AdmissionWorld, choice: Choice, trace: list[str]) -> None:
    trace.append(choice.label)
    world.take(choice)
    if world.loop.errors:
        raise Violation(f"FAILED: {world.loop.errors[0]}")
