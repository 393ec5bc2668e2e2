"""benchmarks/server.py: its server keeps to its pace, and both clients get every answer."""

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark():
    """benchmarks/server.py, which finds its neighbour beside it as a script does, in its server's process too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import server

        yield server
    for name in ("server", "synthesis"):
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_a_paced_server_is_no_faster_than_its_pace(benchmark, monkeypatch):
    monkeypatch.setattr(benchmark, "IN_FLIGHT", (3, 31))
    decoding = benchmark.Decoding(11, frozenset({0}), 7, "test", 5, vocab_rows=8192)
    found = benchmark.measured("1000", benchmark.requests(67), decoding, 1, (None, 1))
    assert set(found) == {"bare, 3", "bare, 31", "ours"}
    assert {one.tokens for one in found.values()} == {67 * 11}
    assert all(one.rate <= 1001 for one in found.values())
    # With three requests in flight three of sixteen places are busy.
    assert found["bare, 3"].rate < 0.2 * 1000 < found["bare, 31"].rate


def test_a_row_tells_the_best_of_the_bare_client_and_what_ours_makes_of_it(benchmark):
    found = {"bare, 16": (800, 2.0, 0.1), "bare, 32": (800, 1.0, 0.2), "ours": (800, 1.25, 0.4)}
    row = benchmark.row("500", {name: benchmark.Found(*one) for name, one in found.items()})
    assert row == "| 500 | 800 (32) | 640 | 0.800 | 250 | 500 |"
