"""``make mutation ARGS="module…"``: mutates modules, and reports what tests miss.

What was found is kept in ``.mutation``, by the text of the function around the mutant:
a run that was broken off goes on, and a mutant that tests have found is not tried
again until its function changes. Survivors are tried in each run. The table and the
survivors go to ``tests/mutation/results.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from tests.mutation.mutants import Mutant, mutants_of
from tests.mutation.table import MODULES
from tests.mutation.worker import OUTCOMES, run

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / ".mutation"
RESULTS = Path(__file__).with_name("results.md")
FOUND = ("killed", "timeout")


def main() -> None:
    parser = argparse.ArgumentParser(prog="make mutation", description=__doc__)
    parser.add_argument("modules", nargs="*", metavar="module", help=", ".join(MODULES))
    parser.add_argument("--again", action="store_true", help="forget earlier runs")
    parser.add_argument("--report", action="store_true", help="run nothing")
    options = parser.parse_args()
    names = options.modules or list(MODULES)
    if unknown := set(names) - set(MODULES):
        parser.error(f"not in the table: {', '.join(sorted(unknown))}")
    os.chdir(ROOT)
    KEPT.mkdir(exist_ok=True)
    for name in names:
        kept = KEPT / f"{name}.jsonl"
        if options.again:
            kept.unlink(missing_ok=True)
        if not options.report:
            _mutate(name, kept)
    _report()


def _all(name: str) -> list[Mutant]:
    sources = MODULES[name].sources
    return [m for each in sources for m in mutants_of(ROOT / "service" / each)]


def _known(kept: Path) -> dict[str, str]:
    if not kept.exists():
        return {}
    return dict(json.loads(line) for line in kept.read_text().splitlines())


def _mutate(name: str, kept: Path) -> None:
    known = _known(kept)
    mutants = _all(name)
    left = [m for m in mutants if known.get(m.key) not in FOUND]
    # In any order, so that a run that is broken off has seen some of everything.
    random.Random(1).shuffle(left)
    began, done = time.monotonic(), 0
    print(f"{name}: {len(mutants)} mutants, {len(left)} to try\n", end="", flush=True)
    with kept.open("a") as file:

        def told(mutant: Mutant, outcome: int) -> None:
            nonlocal done
            file.write(json.dumps([mutant.key, OUTCOMES[outcome]]) + "\n")
            file.flush()
            done += 1
            if OUTCOMES[outcome] not in FOUND:
                where = f"{mutant.path.relative_to(ROOT)}:{mutant.lines[0]}"
                print(f"  {OUTCOMES[outcome]} {where} {mutant.change}", flush=True)
            if done % 100 == 0:
                print(f"  {done} of {len(left)}", flush=True)

        run(left, [f"tests/{each}" for each in MODULES[name].tests], told)
    print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)


def _report() -> None:
    """Write the table and the survivors of all modules, from what is kept."""
    rows, survivors = [], []
    total: Counter[str] = Counter()
    for name in MODULES:
        known = _known(KEPT / f"{name}.jsonl")
        mutants = _all(name)
        counts = Counter(known.get(m.key, "not run") for m in mutants)
        total += counts
        rows.append(_row(name, counts))
        for mutant in mutants:
            outcome = known.get(mutant.key, "not run")
            if outcome not in FOUND and outcome != "not run":
                where = mutant.path.relative_to(ROOT / "service")
                survivors.append(f"{where}:{mutant.lines[0]} {mutant.change}")
    head = "module | mutants | killed | timeout | survived | not run | score"
    table = [head, "---|---:|---:|---:|---:|---:|---:", *rows, _row("all", total)]
    text = "\n".join(f"| {row.replace('|', ' | ')} |" for row in table)
    text = text.replace("  ", " ")
    print(text)
    RESULTS.write_text(_page(text, survivors), encoding="utf-8")


def _row(name: str, counts: Counter[str]) -> str:
    found = sum(counts[each] for each in FOUND)
    tried = counts.total() - counts["not run"]
    survived = tried - found
    score = f"{100 * found / tried:.1f} %" if tried else ""
    return (
        f"{name}|{counts.total()}|{counts['killed']}|{counts['timeout']}"
        f"|{survived}|{counts['not run']}|{score}"
    )


def _page(table: str, survivors: Iterable[str]) -> str:
    day = datetime.now(UTC).date().isoformat()
    return (
        "# Results of mutation testing\n\n"
        f"Written by `make mutation` on {day}; docs/testing.md says how to read it,\n"
        f"and why survivors are left.\n\n{table}\n\n## Survivors\n\n```text\n"
        + "\n".join(survivors)
        + "\n```\n"
    )


if __name__ == "__main__":
    main()
