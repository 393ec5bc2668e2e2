"""llama.cpp, timed: exact settings write the same text, blocks are one pass's, a sampled text too keeps its
distribution.
"""

import numpy as np
import pytest

from fastdraft.benchmark.bench_pair import engine_folder
from fastdraft.benchmark.engine import LOOKUP, NONE, Arm, BenchRequest, PairFiles
from fastdraft.benchmark.engine_llama_cpp import LlamaCpp
from fastdraft.benchmark.equality import check_near_ties, first_difference
from fastdraft.benchmark.predict import predictions, with_logprobs
from fastdraft.exporters.gguf import export_gguf
from fastdraft.results.bench import Steps
from fastdraft.synthesize.completions import Completion, SamplingParams
from fastdraft.system.errors import DiskFull
from fastdraft.system.files import cache_folder

pytestmark = pytest.mark.engine("llama_cpp")
TOKENS = 23
EACH = dict.fromkeys((1, 3), 1e-2)
PROMPTS = [np.array([305, 507, 711, 305, 507]), np.array([17, 1999])]


@pytest.fixture(scope="module")
def files(pair, tmp_path_factory) -> PairFiles:
    folder = tmp_path_factory.mktemp("exports")
    for name, model in pair.items():
        export_gguf(model, folder / name, "f32")
    return PairFiles(
        target=folder / "target",
        draft=folder / "draft",
        target_weights="f32",
        draft_weights="f32",
        device="cpu",
        longest_tokens=97,
        eos=frozenset({8191}),
    )


@pytest.fixture(scope="module")
def exact(files):
    return LlamaCpp.open(files, LlamaCpp.exact)


def test_exact_text_is_the_same_and_blocks_are_those_of_one_pass(files, exact):
    target, draft = LlamaCpp.one_pass_models(files)
    steps = [Steps(setting="", temperature=0, repeat=0, target_seconds=1, draft_seconds=EACH, block_seconds=EACH)]
    found, texts = {1: [], 3: []}, []
    for place, prompt in enumerate(PROMPTS):
        request = BenchRequest(prompt, SamplingParams(0.0), TOKENS)
        plain = exact.complete(request, NONE)
        assert (plain.blocks, plain.drafted) == ((1,) * TOKENS, 0)
        for arm in (LOOKUP, Arm("draft", 1), Arm("draft", 3)):
            timed = exact.complete(request, arm)
            difference = first_difference(target, prompt, plain.tokens, timed.tokens, task="t", number=place, arm=arm)
            check_near_ties("exact", [difference] if difference else [])
            assert (timed.blocks[0], sum(timed.blocks)) == (1, TOKENS)
            assert 0 < timed.first_seconds < timed.seconds
            if arm.kind == "draft":
                assert timed.drafted >= arm.gamma * (len(timed.blocks) - 2)
                assert 0 < timed.drafting_seconds < timed.decode_seconds
                found[arm.gamma] += timed.blocks[1:]
        texts.append(Completion("", prompt, plain.tokens, np.zeros(0, np.float32), SamplingParams(0.7)))
    known = with_logprobs(target, texts, LlamaCpp.greedy_draft)
    assert {row.sampling for row in known} == {SamplingParams(0.0)}
    for gamma, predicted in predictions(draft, known, (1, 3), steps, skipped_tokens=1).items():
        assert sum(found[gamma]) / len(found[gamma]) == pytest.approx(predicted.block_efficiency)
        assert predicted.block_efficiency > 1.05


def test_a_seed_is_a_text(exact):
    texts = [
        exact.complete(BenchRequest(PROMPTS[0], SamplingParams(1.0), TOKENS, seed), NONE).tokens.tolist()
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_a_model_that_was_not_written_whole_is_not_kept(pair, tmp_path, monkeypatch, full_disk):
    """The next bench would open it as a finished one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with full_disk(), pytest.raises(DiskFull, match="no space left while writing"):
        engine_folder(LlamaCpp, pair["draft"], "f32")
    assert list(cache_folder("exports").iterdir()) == []
    place, _ = engine_folder(LlamaCpp, pair["draft"], "f32")
    assert engine_folder(LlamaCpp, pair["draft"], "f32") == (place, "f32")
    assert [file.name for file in place.iterdir()] == ["draft-f32.gguf"]
