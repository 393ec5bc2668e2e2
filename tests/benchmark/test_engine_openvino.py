"""OpenVINO GenAI, timed: exact settings write the same text, blocks are one pass's, and sampling breaks the
distribution.
"""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

for module in ("openvino_genai", "openvino_tokenizers", "nncf", "optimum.intel"):
    pytest.importorskip(module, reason=f"{module} is not installed: pip install 'fastdraft[openvino]'")

from fastdraft.benchmark.engine import LOOKUP, NONE, Arm, BenchRequest, PairFiles  # noqa: E402
from fastdraft.benchmark.engine_openvino import OpenVino  # noqa: E402
from fastdraft.benchmark.equality import check_near_ties, first_difference  # noqa: E402
from fastdraft.benchmark.predict import predictions  # noqa: E402
from fastdraft.exporters.openvino import export_openvino  # noqa: E402
from fastdraft.results.bench import Steps  # noqa: E402
from fastdraft.synthesize.completions import Completion, SamplingParams  # noqa: E402
from fastdraft.system.errors import BenchError  # noqa: E402

pytestmark = pytest.mark.slow
TOKENS, EOS = 23, 8191
EACH = dict.fromkeys((1, 3), 1e-2)
PROMPTS = [np.array([305, 507, 711, 305, 507]), np.array([17, 1999])]


@pytest.fixture(scope="module")
def files(pair, tmp_path_factory) -> PairFiles:
    """The pair in f16."""
    folder = tmp_path_factory.mktemp("exports")
    for name, model in pair.items():
        export_openvino(model, folder / name, "fp16")
    return PairFiles(
        target=folder / "target",
        draft=folder / "draft",
        target_weights="fp16",
        draft_weights="fp16",
        device="CPU",
        longest_tokens=97,
        eos=frozenset({EOS}),
    )


@pytest.fixture(scope="module")
def exact(files):
    return OpenVino.open(files, OpenVino.exact)


def test_exact_text_is_the_same_and_blocks_are_those_of_one_pass(files, exact):
    target, draft = OpenVino.one_pass_models(files)
    steps = [Steps(setting="", temperature=0, repeat=0, target_seconds=1, draft_seconds=EACH, block_seconds=EACH)]
    found, texts = {1: [], 3: []}, []
    for place, prompt in enumerate(PROMPTS):
        request = BenchRequest(prompt, SamplingParams(0.0), TOKENS)
        plain = exact.complete(request, NONE)
        assert (plain.blocks, plain.drafted) == ((1,) * TOKENS, 0)
        assert 0 < plain.first_seconds < plain.seconds
        for arm in (LOOKUP, Arm("draft", 1), Arm("draft", 3)):
            timed = exact.complete(request, arm)
            difference = first_difference(target, prompt, plain.tokens, timed.tokens, task="t", number=place, arm=arm)
            check_near_ties("exact", [difference] if difference else [])
            assert (timed.blocks[0], sum(timed.blocks)) == (1, TOKENS)
            if arm.kind == "draft":
                assert 0 < timed.drafted <= arm.gamma * (len(timed.blocks) - 1)
                found[arm.gamma] += timed.blocks[1:]
        texts.append(Completion("", prompt, plain.tokens, np.zeros(0, np.float32), SamplingParams(0.0)))
    for gamma, predicted in predictions(draft, texts, (1, 3), steps, skipped_tokens=1).items():
        assert sum(found[gamma]) / len(found[gamma]) == pytest.approx(predicted.block_efficiency)
        assert 1.05 < predicted.block_efficiency < 1 + gamma


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("gamma", [1, 3, 5])
def test_blocks_are_whole_up_to_the_end_and_the_draft_takes_a_part_of_them(exact, temperature, gamma):
    request = BenchRequest(PROMPTS[0], SamplingParams(temperature), TOKENS)
    alone, timed = (exact.complete(request, arm) for arm in (NONE, Arm("draft", gamma)))
    assert 0 <= gamma * (len(timed.blocks) - 1) - timed.drafted <= sum(range(gamma + 1))
    if timed.sizes_known:
        left = TOKENS - np.cumsum(timed.blocks)[:-1]
        assert timed.drafted == np.minimum(gamma, left - 1).sum()
    assert 0 < timed.drafting_seconds < timed.decode_seconds < timed.seconds
    assert alone.drafting_seconds == 0


def test_what_the_engine_refuses_is_an_error_of_ours(files, tmp_path):
    with pytest.raises(
        BenchError, match=f"OpenVINO GenAI cannot open {tmp_path} on CPU: .*\n  do: choose another --device"
    ):
        OpenVino.open(replace(files, target=tmp_path), OpenVino.exact).complete(
            BenchRequest(PROMPTS[0], SamplingParams(0.0), 3), NONE
        )


def test_what_is_sampled_with_a_draft_is_not_the_targets(exact):
    """Should this fail, the engine keeps the distribution by now: set `keeps_distribution`, and say so in
    docs/bench.md.
    """
    draws, sampling_settings = 150, {}
    for arm in (NONE, LOOKUP, Arm("draft", 3)):
        texts = (
            exact.complete(BenchRequest(PROMPTS[0], SamplingParams(0.25), 3, seed), arm).tokens[:2]
            for seed in range(draws)
        )
        sampling_settings[arm] = Counter(map(tuple, texts))

    def apart(left, right):
        return sum(abs(left[key] - right[key]) for key in left.keys() | right.keys()) / (2 * draws)

    assert apart(sampling_settings[NONE], sampling_settings[LOOKUP]) < 0.3
    assert apart(sampling_settings[NONE], sampling_settings[Arm("draft", 3)]) > 2 * apart(
        sampling_settings[NONE], sampling_settings[LOOKUP]
    )
    assert not OpenVino.keeps_distribution
