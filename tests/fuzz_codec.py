"""A fuzzer that is guided by coverage, on everything that reads a stranger's bytes.

    python tests/fuzz_codec.py -runs=20000

Options are libFuzzer's. It starts from honest requests, and changes them by the ways of `mutations` as well as its own;
an input that raises anything but our own errors is written to the current folder, and ends it.
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["glassworks.graph", "glassworks.errors"]):
    from glassworks.errors import GlassworksError, WireError
    from glassworks.graph import messages
    from glassworks.graph.check import check_request
    from glassworks.graph.graph import Graph
    from glassworks.graph.limits import Limits

from hostile_seeds import TABLE, honest, seeds
from mutations import mutated

LIMITS = Limits(nodes=200, tokens=200)


def test_one(data: bytes) -> None:
    for reader in (messages.decode_results, messages.decode_error, Graph.decode):
        try:
            reader(data)
        except WireError:
            pass
    try:
        check_request(messages.decode_request(data), TABLE, LIMITS)
    except GlassworksError:
        pass


def changed(data: bytes, max_size: int, seed: int) -> bytes:
    """Bytes changed as messages go wrong, or as libFuzzer likes; the latter alone seldom leaves JSON whole."""
    return mutated([data], seed)[1][:max_size] if seed % 4 else atheris.Mutate(data, max_size)


def main() -> None:
    with tempfile.TemporaryDirectory() as corpus:
        for k, seed in enumerate([*seeds(), honest()[1].graph.encode()]):
            (Path(corpus) / f"seed{k}").write_bytes(seed)
        atheris.Setup([*sys.argv, corpus], test_one, custom_mutator=changed)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
