"""Command line of the fault proxy."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import random
import sys
import threading
from collections.abc import Sequence

from tests.faultproxy import PROFILES, FaultProxy, Profile

COMMANDS = """\
commands, one a line on stdin; DIRECTION is up (to the server) or down, none for both:
  stall [DIRECTION]             stop reading
  black-hole [DIRECTION]        swallow everything, ends too
  resume                        end stalls and black holes
  throttle RATE|none [DIRECTION]
                                bytes per second of each connection
  profile NAME [DIRECTION]      another profile from here on
  half-close DIRECTION          end one direction of every connection
  cut                           end every connection (FIN)
  reset                         end every connection (RST)
  status                        connections and bytes
"""


def address(text: str) -> tuple[str, int]:
    """Return host and port of ``[HOST:]PORT``."""
    host, _, port = text.rpartition(":")
    return host or "127.0.0.1", int(port)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faultproxy",
        description="A TCP proxy that is as bad as a network can be.",
        epilog=COMMANDS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--listen", type=address, default=("127.0.0.1", 0))
    parser.add_argument("--to", type=address, required=True, metavar="[HOST:]PORT")
    parser.add_argument("--profile", choices=PROFILES, default="clear")
    parser.add_argument("--seed", type=int, help="random, and printed, by default")
    for field in dataclasses.fields(Profile):
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=float,
            help="instead of the profile's",
        )
    return parser.parse_args(argv)


def chosen(options: argparse.Namespace) -> Profile:
    """Return the profile, with what the options say instead of it."""
    names = [field.name for field in dataclasses.fields(Profile)]
    given = {name: getattr(options, name) for name in names}
    given = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(PROFILES[options.profile], **given)


def carry_out(proxy: FaultProxy, line: str) -> str:
    """Do what *line* says and return what to print; raises ValueError."""
    words = line.split()
    directions = []
    if len(words) > 1 and words[-1] in ("up", "down"):
        directions.append(getattr(proxy, words.pop()))
    match words:
        case ["stall"]:
            proxy.stall(*directions)
        case ["black-hole"]:
            proxy.black_hole(*directions)
        case ["resume"]:
            proxy.resume()
        case ["throttle", rate]:
            proxy.throttle(None if rate == "none" else float(rate), *directions)
        case ["profile", name] if name in PROFILES:
            proxy.impair(PROFILES[name], *directions)
        case ["half-close"] if directions:
            proxy.half_close(*directions)
        case ["cut"]:
            proxy.cut()
        case ["reset"]:
            proxy.reset()
        case ["status"]:
            return (
                f"{len(proxy.links)} connections of {proxy.accepted}; bytes up "
                f"{proxy.up.forwarded}, down {proxy.down.forwarded}"
            )
        case _:
            raise ValueError(f"not a command: {line}")
    return f"done: {line}"


async def serve(options: argparse.Namespace) -> None:
    seed = random.randrange(2**32) if options.seed is None else options.seed
    host, target = options.to
    proxy = FaultProxy(
        target, host=host, listen=options.listen, profile=chosen(options), seed=seed
    )
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[str] = asyncio.Queue()

    def read() -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            for line in sys.stdin:
                loop.call_soon_threadsafe(lines.put_nowait, line.strip())

    async with proxy:
        profile = chosen(options)
        print(
            f"listening on {options.listen[0]}:{proxy.port}, to {host}:{target}; "
            f"seed {seed}; {profile}",
            flush=True,
        )
        threading.Thread(target=read, daemon=True).start()
        while True:
            line = await lines.get()
            try:
                print(carry_out(proxy, line), flush=True)
            except (AssertionError, ValueError) as error:
                print(error, flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(arguments(None)))
