"""Coverage-guided fuzzing of the codec: the pure side is watched, both compared.

    python tests/speedups/fuzz_json.py -max_total_time=60

Arguments are libFuzzer's. A disagreement, or an exception that the contract does
not name, ends the run and leaves the input in a file.
"""

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(include=["_speedups.json_py", "json"]):
    import _speedups.json_py as json_py
import _speedups.json_c as json_c  # after the path and the watched side

from tests.speedups.mutants import SEEDS, compare


def one_input(octets: bytes) -> None:
    """Compare the twins on one input, as bytes and as text."""
    try:
        text = octets.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        text = octets.decode("latin-1")
    compare(json_c, json_py, text)


def mutate(octets: bytes, size: int, seed: int) -> bytes:
    """Start from a document now and then; else leave it to libFuzzer."""
    if seed % 50 == 0:
        octets = SEEDS[seed // 50 % len(SEEDS)].encode()
    return atheris.Mutate(octets, min(size, len(octets) + 40))


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input, custom_mutator=mutate)
    atheris.Fuzz()
