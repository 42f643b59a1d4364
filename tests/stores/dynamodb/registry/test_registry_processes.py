"""Limits that hold over several processes at once; ministack has true transactions."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import msgspec
import pytest

from tests.harness.process import environment, launched
from tests.stores.dynamodb.registry.fleet import Fleet

PROCESSES = 4


class Connectors:
    """Processes that run tests/stores/dynamodb/registry/connector.py."""

    def __init__(self, emulator, settings, count, user):
        module = "tests.stores.dynamodb.registry.connector"
        text = json.dumps(msgspec.to_builtins(settings))
        each = count // PROCESSES
        more = count % PROCESSES
        self.processes = [
            subprocess.Popen(
                launched(
                    sys.executable,
                    "-m",
                    module,
                    text,
                    f"p{n}-",
                    str(each + (n < more)),
                    user,
                ),
                env=environment(emulator.credentials),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for n in range(PROCESSES)
        ]

    def answers(self):
        """Tell all to go on, and return what each says."""
        for process in self.processes:
            process.stdin.write("\n")
            process.stdin.flush()
        return [json.loads(process.stdout.readline()) for process in self.processes]

    def ready(self):
        for process in self.processes:
            assert process.stdout.readline() == "ready\n"

    def close(self):
        for process in self.processes:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()


@pytest.fixture
async def run(ministack, store_clock):
    started = []

    async def run(count, user, **values):
        fleet = await Fleet(ministack.settings(**values), store_clock).create()
        connectors = Connectors(ministack, fleet.settings, count, user)
        started.append((fleet, connectors))
        await asyncio.to_thread(connectors.ready)
        answers = await asyncio.to_thread(connectors.answers)
        together = {name: one for answer in answers for name, one in answer.items()}
        return fleet, together, connectors

    yield run
    for fleet, connectors in started:
        connectors.close()
        await fleet.close()


async def test_fifty_connects_of_one_user_leave_three(run):
    fleet, answers, connectors = await run(50, "u")
    found = fleet.check()
    assert len(answers) == 50
    assert len(found.records) == 3
    assert sum(found.counts.values()) == 3
    # Each of the others was evicted by exactly one connection.
    evicted = [name for answer in answers.values() for name in answer]
    assert len(evicted) == len(set(evicted)) == 47
    assert {*evicted, *found.records} == answers.keys()
    # And the process that has it is told.
    told = await asyncio.to_thread(connectors.answers)
    assert sorted(name for each in told for name in each) == sorted(evicted)


async def test_five_hundred_connects_leave_as_many_as_may_be(run):
    fleet, answers, _ = await run(500, "each", client_limit=100)
    found = fleet.check()
    admitted = {name for name, answer in answers.items() if answer == []}
    assert len(answers) == 500
    assert len(admitted) == 100
    assert found.records.keys() == admitted
    assert {a for n, a in answers.items() if n not in admitted} == {3013}
