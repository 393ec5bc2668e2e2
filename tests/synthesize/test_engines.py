"""The table of engines: each returns the same kind of rows; a missing package is named."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

from fastdraft.config import SynthesizePart, TargetPart
from fastdraft.maths.sampling import warp
from fastdraft.synthesize.completion_store import CompletionStore
from fastdraft.synthesize.completions import Completion, Request, SamplingParams
from fastdraft.synthesize.decoding_params import DecodingParams
from fastdraft.synthesize.engine_interface import with_keys
from fastdraft.synthesize.engines import ENGINES, EngineSetup, batch_size
from fastdraft.synthesize.generate import generate
from fastdraft.synthesize.key_set import KeySet
from fastdraft.synthesize.rescore import completion_logits, rescore_rows, rescorer, sampled_logp
from fastdraft.synthesize.write import write_completions
from fastdraft.system import precision
from fastdraft.system.errors import MissingExtra
from fastdraft.system.precision import Precision
from fastdraft.system.progress import Bar

SAMPLING_SETTINGS = [SamplingParams(0), SamplingParams(1.0), SamplingParams(0.7, 13, 0.9)]


@pytest.fixture
def setup_of(tiny_files: Path, tmp_path: Path):
    """A setup for the target of the tiny pipeline."""

    def make(engine: str, **changed: object) -> EngineSetup:
        part = SynthesizePart(mix={"text": 1}, prompts=1, engine=engine, **changed)
        return EngineSetup(
            target=TargetPart(path=str(tiny_files / "target")),
            part=part,
            decoding=DecodingParams(13, frozenset({0}), 7, "r", 5, 0),
            device=torch.device("cpu"),
            precision=precision.choose("fp32", torch.device("cpu")),
            context_tokens=97,
            scratch=tmp_path / "engine",
        )

    return make


def requests() -> Iterator[Request]:
    return (Request(np.arange(1 + i % 7) * 5 % 300 + 1, SAMPLING_SETTINGS[i % 3], i) for i in range(23))


def completions(setup: EngineSetup, store: CompletionStore, raw: bool = False):
    """All completions by key."""
    engine = ENGINES[setup.part.engine](setup)
    rescore = rescorer("none" if raw else engine.logprobs_mode, not raw, setup.open_target)
    with Bar("test", 23, "rows") as bar:
        assert not write_completions(engine, with_keys(requests(), setup.decoding), store, setup.decoding, bar, rescore)
    return {row.key: row for row in store.read()}


def test_the_recipe_has_the_engines_of_the_table():
    assert list(ENGINES) == list(SynthesizePart.model_fields["engine"].annotation.__args__)


@pytest.mark.parametrize(("engine", "module"), [("vllm", "vllm"), ("openvino", "openvino_genai")])
def test_a_missing_package_names_the_extra(setup_of, monkeypatch, engine, module):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    (setup_of(engine).scratch).mkdir()
    monkeypatch.setattr("fastdraft.synthesize.engines.openvino_folder", lambda *folders: folders[-1])
    with pytest.raises(MissingExtra, match=rf"{module} cannot be imported[^\0]*pip install 'fastdraft\[{engine}\]'"):
        ENGINES[engine](setup_of(engine))


@pytest.mark.slow
def test_openvino_generates_the_same_completions(setup_of, tmp_path):
    setup = setup_of("openvino")
    reference = completions(setup_of("transformers"), CompletionStore(tmp_path / "a"))
    actual = completions(setup, CompletionStore(tmp_path / "b"))
    assert set(actual) == set(reference)
    greedy = [key for key, row in reference.items() if row.sampling.greedy]
    equal = sum(np.array_equal(reference[key].tokens, actual[key].tokens) for key in greedy)
    assert equal >= len(greedy) - 1, "except for a near tie"
    # Rescored rows have processed log-probabilities, the engine's are raw.
    target = setup.open_target()
    for row, again in zip(actual.values(), rescore_rows(target, list(actual.values())).rows, strict=True):
        np.testing.assert_allclose(row.logp, again.logp, atol=1e-4)
    raw = completions(setup, CompletionStore(tmp_path / "c"), raw=True)
    rows = list(raw.values())
    for place, logits_NV in completion_logits(target, rows):
        row = rows[place]
        expected = logits_NV.log_softmax(-1).gather(1, torch.from_numpy(row.tokens)[:, None])[:, 0]
        np.testing.assert_allclose(row.logp, expected.numpy(), atol=2e-3)
        assert row.sampling.greedy or np.isfinite(sampled_logp(row, logits_NV)).all()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra `ray`")
def test_ray_generates_the_same_bits_and_stops_afterwards(setup_of, tmp_path, monkeypatch, ray_processes):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before = ray_processes()
    reference = completions(setup_of("transformers"), CompletionStore(tmp_path / "a"))
    actual = completions(setup_of("transformers", ray_workers=2), CompletionStore(tmp_path / "b"))
    assert ray_processes().keys() == before.keys()
    assert set(reference) == set(actual)
    for key, row in reference.items():
        np.testing.assert_array_equal(row.tokens, actual[key].tokens)
        np.testing.assert_array_equal(row.logp, actual[key].logp)


@pytest.mark.engine("vllm")
@pytest.mark.filterwarnings("ignore:")  # vLLM's own
def test_vllm_returns_log_probabilities_of_the_distribution(setup_of, tiny_files, tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")  # GB; by default nearly all memory of a machine without a GPU
    wide = AutoConfig.from_pretrained(
        tiny_files / "target", head_dim=32
    )  # the smallest that vLLM 0.32.0 supports on a CPU
    shutil.copytree(tiny_files / "target", tmp_path / "wide")
    LlamaForCausalLM(wide).save_pretrained(tmp_path / "wide")

    def setup(engine):
        return replace(setup_of(engine), target=TargetPart(path=str(tmp_path / "wide")))

    rows = completions(setup("vllm"), CompletionStore(tmp_path / "a"))
    reference = completions(setup("transformers"), CompletionStore(tmp_path / "b"))
    assert set(rows) == set(reference)
    greedy = [key for key, row in reference.items() if row.sampling.greedy]
    equal = sum(np.array_equal(reference[key].tokens, rows[key].tokens) for key in greedy)
    assert equal >= len(greedy) - 1, "except for a near tie"
    again = rescore_rows(setup("vllm").open_target(), list(rows.values())).rows
    for row, scored in zip(rows.values(), again, strict=True):
        np.testing.assert_allclose(row.logp, scored.logp, atol=2e-3)


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_the_target_runs_in_the_precision_of_the_setup(setup_of, tmp_path, name):
    setup = replace(setup_of("transformers"), precision=Precision(name=name, reason="by name"))
    assert {weight.dtype for weight in setup.open_target().parameters()} == {setup.precision.dtype}
    rows = list(completions(setup, CompletionStore(tmp_path / "rows")).values())
    assert len(rows) == 23
    assert all(np.isfinite(row.logp).all() for row in rows)


# KeySet and values of a token of Llama 3.1 8B: 2 x 32 layers x 8 heads x 128 numbers of two bytes, 128 KiB.
@pytest.mark.parametrize(
    ("changed", "rows", "exact"),
    [
        ({"max_prompt_tokens": 512, "max_new_tokens": 512}, 32, 32),
        ({"max_prompt_tokens": 24, "max_new_tokens": 104}, 256, 256),
        ({"max_prompt_tokens": 24, "max_new_tokens": 103}, 256, 258),
        ({"max_prompt_tokens": 25, "max_new_tokens": 104}, 254, 254),
        ({"max_prompt_tokens": 32, "max_new_tokens": 512, "mix": {"magpie": 1}}, 32, 32),
        ({"max_prompt_tokens": 90_000, "max_new_tokens": 90_000}, 1, 1),
        ({"max_prompt_tokens": 512, "max_new_tokens": 512, "batch_size": 199}, 199, 199),
    ],
)
def test_the_batch_size_is_derived_from_the_size_of_the_kv_cache(tmp_path, changed, rows, exact):
    sizes = {"num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8}
    LlamaConfig(**sizes, head_dim=128, dtype="bfloat16").save_pretrained(tmp_path)
    part = SynthesizePart.model_validate({"mix": {"text": 1}, "prompts": 1} | changed)
    target = TargetPart(path=str(tmp_path))
    assert batch_size(part, target, context_tokens=131_072, dtype=torch.bfloat16) == rows
    in_fp32 = batch_size(part, target, context_tokens=131_072, dtype=torch.float32)
    assert in_fp32 == changed.get("batch_size", max(exact // 2, 1))


def test_the_engine_transformers_returns_no_stored_rows(setup_of):
    setup, stored = setup_of("transformers"), KeySet()
    rows = list(with_keys(requests(), setup.decoding))
    stored.add(row.key for row in rows[:20])
    returned = [row.key for shard in ENGINES["transformers"](setup).shards(rows, stored) for row in shard.rows]
    assert sorted(returned) == sorted(row.key for row in rows[20:])


class FakeVllm:
    """The part of vLLM's documented API that the engine uses, on top of a transformers model."""

    def __init__(self, model, arguments, cpu=False):
        self.model, self.arguments = model, arguments
        self.platforms = SimpleNamespace(current_platform=SimpleNamespace(is_cpu=lambda: cpu))
        self.llm_engine = SimpleNamespace(engine_core=SimpleNamespace(shutdown=self._shutdown))
        self.opened = self.closed = 0

    def LLM(self, **settings):
        self.arguments.update(settings)
        self.opened += 1
        return self

    def _shutdown(self):
        self.closed += 1

    def SamplingParams(self, **settings):
        return SimpleNamespace(**settings)

    def generate(self, prompts, settings, use_tqdm):
        assert not use_tqdm, "the stage shows the progress"
        return [SimpleNamespace(outputs=[self._completion(*each)]) for each in zip(prompts, settings, strict=True)]

    def _completion(self, prompt, settings):
        """The log-probabilities of the sampled and the top tokens by id; all raw, or all processed."""
        tokens, sampling = (
            np.array(prompt["prompt_token_ids"]),
            SamplingParams(settings.temperature, max(settings.top_k, 0), settings.top_p),
        )
        coins = torch.from_numpy(np.random.default_rng(settings.seed).random((1, settings.max_tokens)))
        (written,) = generate(
            self.model, [tokens], sampling, settings.max_tokens, frozenset(settings.stop_token_ids), coins
        )
        ((_, logits_NV),) = completion_logits(
            self.model, [Completion("0", tokens, written.tokens, written.logp, sampling)]
        )
        raw = self.arguments["logprobs_mode"] == "raw_logprobs" or sampling.greedy
        logp_NV = logits_NV.log_softmax(-1) if raw else warp(logits_NV, *sampling)
        assert settings.logprobs <= self.arguments["max_logprobs"]
        positions = [
            {
                i: SimpleNamespace(logprob=float(logp_V[i]))
                for i in [token, *logp_V.topk(settings.logprobs).indices.tolist()]
            }
            for logp_V, token in zip(logp_NV, written.tokens.tolist(), strict=True)
        ]
        return SimpleNamespace(token_ids=written.tokens.tolist(), logprobs=positions)


@pytest.mark.parametrize(
    ("cpu", "k", "rescore", "expected"),
    [
        (True, 0, True, {"enable_chunked_prefill": False}),
        (True, 3, True, {"enable_chunked_prefill": False}),
        (False, 0, True, {}),
        (False, 3, False, {}),
        (False, 3, True, {"gpu_memory_utilization": 0.45}),
    ],
)
def test_vllm_does_not_chunk_prefill_on_a_cpu_and_leaves_room_on_a_gpu(
    setup_of, monkeypatch, cpu, k, rescore, expected
):
    setup = setup_of("vllm", top_logprobs=k, rescore=rescore)
    setup, arguments = replace(setup, decoding=setup.decoding._replace(top_logprobs=k)), {}
    monkeypatch.setitem(__import__("sys").modules, "vllm", FakeVllm(setup.open_target(), arguments, cpu))
    monkeypatch.delenv("VLLM_LOGGING_STREAM", raising=False)
    next(ENGINES["vllm"](setup).shards(with_keys(requests(), setup.decoding), KeySet()))
    names = "enable_chunked_prefill", "gpu_memory_utilization"
    assert {name: arguments[name] for name in names if name in arguments} == expected
    assert os.environ["VLLM_LOGGING_STREAM"] == "ext://sys.stderr"


def test_vllm_is_opened_only_for_missing_rows_and_closed_after_them(setup_of, monkeypatch):
    setup = setup_of("vllm")
    vllm = FakeVllm(setup.open_target(), {})
    monkeypatch.setitem(__import__("sys").modules, "vllm", vllm)
    rows, stored = list(with_keys(requests(), setup.decoding)), KeySet()
    engine = ENGINES["vllm"](setup)
    assert (vllm.opened, vllm.closed) == (0, 0)
    assert sum(len(shard.rows) for shard in engine.shards(rows, stored)) == len(rows)
    assert (vllm.opened, vllm.closed) == (1, 1)
    stopped = engine.shards(rows, stored)
    next(stopped)
    stopped.close()
    assert (vllm.opened, vllm.closed) == (2, 2)
    stored.add(row.key for row in rows)
    assert not list(engine.shards(rows, stored))
    assert vllm.opened == 2


@pytest.mark.parametrize("k", [0, 7])
def test_vllm_returns_raw_top_tokens_or_processed_log_probabilities(setup_of, monkeypatch, tmp_path, k):
    setup = setup_of("vllm", top_logprobs=k, rescore=k == 0)
    setup = replace(setup, decoding=setup.decoding._replace(top_logprobs=k))
    target, arguments = setup.open_target(), {}
    monkeypatch.setitem(__import__("sys").modules, "vllm", FakeVllm(target, arguments))
    engine, store = ENGINES["vllm"](setup), CompletionStore(tmp_path)

    def never():
        raise AssertionError("the target is not needed")

    with Bar("test", 23, "rows") as bar:
        rescore = rescorer(engine.logprobs_mode, k == 0, never, k)
        assert not write_completions(engine, with_keys(requests(), setup.decoding), store, setup.decoding, bar, rescore)
    rows = store.read()
    assert arguments["logprobs_mode"] == ("raw_logprobs" if k else "processed_logprobs")
    for row, again in zip(rows, rescore_rows(target, rows, k).rows, strict=True):
        if k and row.sampling == SAMPLING_SETTINGS[2]:
            assert len(row.logp) == 0, "raw, and not rescored"
        else:
            np.testing.assert_allclose(row.logp, again.logp, atol=1e-4)
        if k:
            np.testing.assert_array_equal(row.top.ids, again.top.ids)
            np.testing.assert_allclose(row.top.logp.astype(float), again.top.logp.astype(float), atol=4e-3)


def test_invalid_log_probabilities_of_vllm_are_counted(setup_of, monkeypatch):
    setup = setup_of("vllm", top_logprobs=2)
    setup = replace(setup, decoding=setup.decoding._replace(top_logprobs=2))
    broken = [{7: np.nan, 5: -1.0}, {7: -1.0, 5: np.nan}, {7: -1.0, 5: 0.5}, {7: -0.1, 5: -0.1}, {7: -1.0, 5: -1.0}]
    steps = [{i: SimpleNamespace(logprob=logp) for i, logp in step.items()} for step in broken]
    outputs = [SimpleNamespace(outputs=[SimpleNamespace(token_ids=[7], logprobs=[step])]) for step in steps]
    vllm = FakeVllm(None, {})
    vllm.generate = lambda *_, **__: outputs
    monkeypatch.setitem(__import__("sys").modules, "vllm", vllm)
    keyed = with_keys((Request(np.array([3]), SamplingParams(1.0), i) for i in range(5)), setup.decoding)
    (shard,) = ENGINES["vllm"](setup).shards(keyed, KeySet())
    assert [row.index for row in shard.rows] == [4]
    assert shard.refused == {
        "log-probabilities above zero, infinite or NaN": 1,
        "log-probabilities of most likely tokens above zero or NaN": 2,
        "most likely tokens whose probabilities sum to more than 1": 1,
    }


@pytest.mark.parametrize(
    "changed",
    [
        {"engine": "transformers"},
        {"engine": "server", "server": {"urls": ["http://a/v1"], "model": "m", "text_only": True}},
        {"engine": "server", "server": {"urls": ["http://a/v1"], "model": "m"}, "top_logprobs": 0},
    ],
)
def test_top_logprobs_from_server_needs_a_server_with_token_ids(changed):
    part = {"mix": {"text": 1}, "prompts": 1, "top_logprobs": 3, "top_logprobs_from": "server"} | changed
    with pytest.raises(ValidationError, match="top_logprobs_from is server; give engine server, without text_only"):
        SynthesizePart(**part)


@pytest.mark.parametrize(("source", "requested"), [("target", 0), ("server", 3)])
def test_servers_are_asked_for_top_tokens_only_if_the_recipe_says_so(setup_of, source, requested):
    server = {"urls": ["http://a/v1"], "model": "m"}
    setup = setup_of("server", server=server, top_logprobs=3, top_logprobs_from=source)
    setup = replace(setup, decoding=setup.decoding._replace(top_logprobs=3))
    assert ENGINES["server"](setup)._decoding.top_logprobs == requested
