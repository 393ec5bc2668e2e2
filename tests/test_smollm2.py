"""The pair `smollm2`, a real LLM and its draft, where the package of the LLM can be had."""

import json
from pathlib import Path

import pytest

import fastdraft as api
from fastdraft.models import named_pairs
from fastdraft.models.architecture import parameters
from fastdraft.models.pretrained import open_config
from fastdraft.play.open_pair import open_pair
from fastdraft.play.page import make_request, page_states
from fastdraft.system.errors import TargetError


@pytest.fixture(scope="module")
def target() -> Path:
    try:
        return named_pairs.target("smollm2")
    except TargetError as error:
        pytest.skip(f"the package of the LLM cannot be had here: {error}")


@pytest.mark.slow
def test_the_packaged_draft_drafts_for_a_real_llm(target):
    report = api.check("smollm2", "smollm2")
    assert report.holds, report
    draft, llm = (parameters(open_config(model)) for model in (named_pairs.draft("smollm2"), "smollm2"))
    assert llm == 134_515_008
    assert draft <= llm / 15
    player = open_pair("smollm2", "smollm2", "transformers", None)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    *_, state = page_states(player, question, make_request(player, question, 3, 0.0, 1.0, 13))
    assert "The texts are equal, token for token." in state.verdict
    assert "Paris" in state.conversation[-1]["content"]
    assert 'class="a"' in state.drafted_text, "no drafted token was accepted"


@pytest.mark.engine("llama_cpp")
def test_llama_cpp_accepts_what_one_pass_predicts(target, fastdraft):
    """From the GGUF file of the target to a GGUF file of the draft, and llama.cpp's own counts.

    In f32: with weights of q8_0 llama.cpp rounds activations too; a block and a token then differ by .03 in logits.
    """
    code = next(file for file in named_pairs.prompt_files(named_pairs.draft("smollm2")) if file.endswith("code.jsonl"))
    arguments = ["--tasks", code, "--prompts", 1, "--tokens", 19, "--gammas", 3, "--repeats", 1, "--temperature", 0]
    ended = fastdraft("bench", "smollm2", "smollm2", "--engine", "llama.cpp", "--weights", "f32", *arguments, "--json")
    assert ended.code == 0, ended.err
    for cell in json.loads(ended.out)["cells"]:
        drafted = next(arm for arm in cell["arms"] if arm["arm"] == "draft")
        assert drafted["block_efficiency"] == pytest.approx(drafted["predicted"]["block_efficiency"], rel=0.1)
