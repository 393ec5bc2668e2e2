"""The proof of an export: what is equal is counted as equal, and what is not is seen."""

import numpy as np
import pytest
import torch

from fastdraft.evaluation.one_pass import evaluate
from fastdraft.exporters.proof import GAMMA, RESAMPLES, TOKENS, Material, check, material, original_text, prove
from fastdraft.synthesize.completions import Completion, SamplingParams
from fastdraft.system.errors import ProofError

PROMPTS = [np.array([3, 5, 7]), np.array([11, 13, 17, 19, 23]), np.array([2, 29])]


class InTransformers:
    """A model as an engine opens it; `spoils` changes its logits."""

    engine = "transformers"

    def __init__(self, model, spoils=lambda logits: logits):
        self.model, self.spoils = model, spoils

    def greedy(self, prompt, tokens):
        written = []
        for _ in range(tokens):
            written.append(int(self.logits(np.concatenate([prompt, np.array(written, int)]))[-1].argmax()))
        return np.array(written)

    @torch.inference_mode()
    def logits(self, text):
        return self.spoils(self.model(input_ids=torch.from_numpy(text)[None]).logits[0])

    def encode(self, text):
        return [ord(letter) % 131 for letter in text if letter != "x"]


class Letters:
    """A tokenizer of one id a letter."""

    def __call__(self, text):
        return type("Encoded", (), {"input_ids": [ord(letter) % 131 for letter in text]})()


def completion(model, prompt, sampling):
    tokens = original_text(model, prompt, 20)
    logp = np.zeros(20, np.float32) if sampling.greedy else np.full(20, -0.7, np.float32)
    return Completion("k", prompt, tokens, logp, sampling)


def tried(rows=()):
    return Material(PROMPTS, ["abc", "axb"], Letters(), rows)


def test_a_model_is_what_it_is(tiny_llama):
    model = tiny_llama(3)
    proof = prove(model, InTransformers(model), tried())
    assert (proof.prompts, proof.equal_prompts, proof.widest_gap) == (3, 3, None)
    assert proof.tokens == proof.agreeing_tokens == 3 * TOKENS
    assert (proof.texts, proof.unlike_texts) == (2, ("axb",))
    check(proof, 1.0, "it")


def test_another_model_is_seen(tiny_llama):
    proof = prove(tiny_llama(3), InTransformers(tiny_llama(4)), tried())
    assert proof.equal_prompts == 0
    assert proof.widest_gap > 1
    assert proof.agreement < 0.2
    with pytest.raises(ProofError, match=r"it: of 192 tokens .* transformers ranks \d+ first .* wanted at least 0.5\n"):
        check(proof, 0.5, "it")


def test_the_gap_is_how_much_the_original_preferred_its_own(tiny_llama):
    """An engine that never writes the original's first token after PROMPTS[0], whatever comes before."""
    model = tiny_llama(3)
    first = int(original_text(model, PROMPTS[0], 1)[0])

    def without(logits):
        logits[:, first] = -1e9
        return logits

    proof = prove(model, InTransformers(model, without), Material(PROMPTS[:1], [], Letters(), []))
    with torch.inference_mode():
        best = model(input_ids=torch.from_numpy(PROMPTS[0])[None]).logits[0, -1].topk(2).values
    assert proof.equal_prompts == 0
    assert proof.widest_gap == pytest.approx(float(best[0] - best[1]))
    assert proof.agreeing_tokens < proof.tokens


@pytest.mark.parametrize("sampling", [SamplingParams(0.0), SamplingParams(0.7)])
def test_block_efficiency_is_that_of_the_one_pass_evaluation(tiny_llama, perturbed, sampling):
    target = tiny_llama(3)
    draft, export = perturbed(target, 0.2, 1), perturbed(target, 0.4, 2)
    rows = [completion(target, prompt, sampling) for prompt in PROMPTS]
    (kept,) = prove(draft, InTransformers(export), tried(rows)).kept
    assert (kept.temperature, kept.gamma, kept.prompts) == (sampling.temperature, GAMMA, 3)
    for found, model in ((kept.original, draft), (kept.exported, export)):
        wanted = evaluate(model, rows, [GAMMA], stage="align", task="text", c=0.1, resamples=RESAMPLES, seed=0)
        assert found.value == pytest.approx(wanted.gammas[0].block_efficiency.value)
    assert kept.original.value != kept.exported.value


def test_recorded_prompts_come_before_texts(tiny_llama):
    rows = [
        completion(tiny_llama(3), prompt, sampling)
        for prompt in PROMPTS
        for sampling in (SamplingParams(0.7), SamplingParams(0.0))
    ]
    found = material(Letters(), ["abc", "x"], rows, 97)
    assert [prompt.tolist() for prompt in found.prompts] == [prompt.tolist() for prompt in PROMPTS]
    assert [row.sampling.temperature for row in found.completions] == [0.0] * 3 + [0.7] * 3
    bare = material(Letters(), ["abcdefghijkl", "x"], [], 8)
    assert [prompt.tolist() for prompt in bare.prompts] == [[ord(letter) % 131 for letter in "abcd"]]
    assert bare.longest_tokens == 4 + TOKENS


def test_a_short_context_holds_a_short_text(tiny_llama):
    proof = prove(tiny_llama(3, context=13), InTransformers(tiny_llama(3, context=13)), tried())
    assert proof.tokens == 3 * (13 - 5) == proof.agreeing_tokens
