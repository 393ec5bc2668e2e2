"""The table of engines: each gives the same kind of rows; what is not installed says so."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from fastdraft.errors import MissingExtra
from fastdraft.progress import Bar
from fastdraft.recipe import SynthesizePart, TargetPart
from fastdraft.synthesize.completions import CompletionStore, Keys, Law, Request
from fastdraft.synthesize.engines import ENGINES, Setup
from fastdraft.synthesize.rescore import completion_logits, law_logp, rescored, rescorer
from fastdraft.synthesize.write import Decoding, keyed, write

LAWS = [Law(0), Law(1.0), Law(0.7, 13, 0.9)]


@pytest.fixture
def setup_of(tiny_files: Path, tmp_path: Path):
    """A setup for the target of the tiny road."""

    def make(engine: str, **changed: object) -> Setup:
        part = SynthesizePart(mix={"text": 1}, prompts=1, engine=engine, **changed)
        decoding = Decoding(13, frozenset({0}), 7, "r", 5, 0)
        return Setup(
            TargetPart(path=str(tiny_files / "target")), part, decoding, torch.device("cpu"), 97, tmp_path / "engine"
        )

    return make


def requests() -> Iterator[Request]:
    return (Request(np.arange(1 + i % 7) * 5 % 300 + 1, LAWS[i % 3], i) for i in range(23))


def written(setup: Setup, store: CompletionStore, raw: bool = False):
    """All rows by key."""
    engine = ENGINES[setup.part.engine](setup)
    rescore = rescorer("none" if raw else engine.logp, not raw, setup.open_target)
    with Bar("test", 23, "rows") as bar:
        assert not write(engine, keyed(requests(), setup.decoding), store, setup.decoding, bar, rescore)
    return {row.key: row for row in store.read()}


def test_the_recipe_knows_the_engines_of_the_table():
    assert list(ENGINES) == list(SynthesizePart.model_fields["engine"].annotation.__args__)


@pytest.mark.parametrize(("engine", "module"), [("vllm", "vllm"), ("openvino", "openvino_genai")])
def test_an_engine_that_is_not_installed_names_its_extra(setup_of, monkeypatch, engine, module):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    (setup_of(engine).scratch).mkdir()
    monkeypatch.setattr("fastdraft.synthesize.engines.exported", lambda *folders: folders[-1])
    with pytest.raises(MissingExtra, match=rf"{module} cannot be imported[^\0]*pip install 'fastdraft\[{engine}\]'"):
        ENGINES[engine](setup_of(engine))


@pytest.mark.slow
def test_openvino_writes_what_the_target_writes(setup_of, tmp_path):
    setup = setup_of("openvino")
    ours = written(setup_of("transformers"), CompletionStore(tmp_path / "a"))
    theirs = written(setup, CompletionStore(tmp_path / "b"))
    assert set(theirs) == set(ours)
    greedy = [key for key, row in ours.items() if row.law.greedy]
    equal = sum(np.array_equal(ours[key].tokens, theirs[key].tokens) for key in greedy)
    assert equal >= len(greedy) - 1, "near ties apart"
    # Rescored rows have log p under their law; the engine's own are raw.
    target = setup.open_target()
    for row, again in zip(theirs.values(), rescored(target, list(theirs.values())).rows, strict=True):
        np.testing.assert_allclose(row.logp, again.logp, atol=1e-4)
    raw = written(setup, CompletionStore(tmp_path / "c"), raw=True)
    rows = list(raw.values())
    for place, logits_NV in completion_logits(target, rows):
        row = rows[place]
        expected = logits_NV.log_softmax(-1).gather(1, torch.from_numpy(row.tokens)[:, None])[:, 0]
        np.testing.assert_allclose(row.logp, expected.numpy(), atol=2e-3)
        assert row.law.greedy or np.isfinite(law_logp(row, logits_NV)).all()


@pytest.mark.slow
def test_ray_writes_the_same_bits(setup_of, tmp_path):
    pytest.importorskip("ray")
    ours = written(setup_of("transformers"), CompletionStore(tmp_path / "a"))
    theirs = written(setup_of("transformers", ray_workers=2), CompletionStore(tmp_path / "b"))
    assert set(ours) == set(theirs)
    for key, row in ours.items():
        np.testing.assert_array_equal(row.tokens, theirs[key].tokens)
        np.testing.assert_array_equal(row.logp, theirs[key].logp)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
def test_vllm_writes_rows_under_their_law(setup_of, tmp_path):
    setup = setup_of("vllm")
    rows = list(written(setup, CompletionStore(tmp_path)).values())
    for row, again in zip(rows, rescored(setup.open_target(), rows).rows, strict=True):
        np.testing.assert_allclose(row.logp, again.logp, atol=2e-2)


def test_weights_in_bf16_are_the_model_that_p_is_of(setup_of):
    assert setup_of("transformers", precision="bf16").open_target().dtype == torch.bfloat16
    assert setup_of("transformers").open_target().dtype == torch.float32


def test_the_in_process_engine_gives_nothing_that_is_stored(setup_of):
    setup, stored = setup_of("transformers"), Keys()
    rows = list(keyed(requests(), setup.decoding))
    stored.add(row.key for row in rows[:20])
    found = [row.key for shard in ENGINES["transformers"](setup).shards(rows, stored) for row in shard.rows]
    assert sorted(found) == sorted(row.key for row in rows[20:])
