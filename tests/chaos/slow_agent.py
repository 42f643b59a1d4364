"""An agent in a process of its own, at a port, that says a word each 20 ms."""

from __future__ import annotations

import asyncio
import sys

from tests.harness.agents import Agent, Answer, said

WORDS = [f"word{number} " for number in range(60)]


async def script(answer: Answer) -> None:
    asked = answer.input
    for event in said(asked["runId"], WORDS, asked["threadId"]):
        await answer.send(event)
        await asyncio.sleep(0.02)


async def main(port: int) -> None:
    async with Agent.start(port) as agent:
        agent.script = script
        print("ready", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
