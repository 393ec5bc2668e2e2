"""benchmarks/server.py: its server is not faster than its rate, and both clients get all responses."""

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark():
    """benchmarks/server.py, imported with its folder on the path as for a script."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import server

        yield server
    for name in ("server", "synthesis"):
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_a_paced_server_is_not_faster_than_its_rate(benchmark, monkeypatch):
    monkeypatch.setattr(benchmark, "IN_FLIGHT", (3, 31))
    decoding = benchmark.DecodingParams(11, frozenset({0}), 7, "test", 5, vocab_rows=8192)
    results = benchmark.measure("1000", benchmark.make_requests(67), decoding, 1, (None, 1))
    assert set(results) == {"minimal, 3", "minimal, 31", "FastDraft"}
    assert {result.tokens for result in results.values()} == {67 * 11}
    assert all(result.rate <= 1001 for result in results.values())
    # With three requests in flight, three of sixteen slots are busy.
    assert results["minimal, 3"].rate < 0.2 * 1000 < results["minimal, 31"].rate


def test_a_row_compares_fastdraft_with_the_best_minimal_client(benchmark):
    results = {"minimal, 16": (800, 2.0, 0.1), "minimal, 32": (800, 1.0, 0.2), "FastDraft": (800, 1.25, 0.4)}
    row = benchmark.row("500", {name: benchmark.Throughput(*result) for name, result in results.items()})
    assert row == "| 500 | 800 (32) | 640 | 0.800 | 250 | 500 |"
