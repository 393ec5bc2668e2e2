"""The examples of docs/extend.md work: each block runs in the module that it names, and its addition is used."""

import json
import re
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoConfig

from fastdraft.benchmark import engines as bench_engines
from fastdraft.benchmark.engine import NONE, Arm, BenchRequest, PairFiles
from fastdraft.config import DraftPart, TargetPart
from fastdraft.config.resolve import digest, resolve
from fastdraft.evaluation import tasks
from fastdraft.exporters import formats
from fastdraft.maths import acceptance, divergence
from fastdraft.models.pretrained import open_model, open_tokenizer
from fastdraft.models.run_context import RunContext
from fastdraft.models.shape import derive, families
from fastdraft.pipeline import run_stages, stages
from fastdraft.synthesize import engines
from fastdraft.synthesize.completion_store import CompletionStore
from fastdraft.synthesize.completions import Request, SamplingParams
from fastdraft.synthesize.decoding_params import DecodingParams
from fastdraft.synthesize.engine_interface import with_keys
from fastdraft.synthesize.rescore import rescorer
from fastdraft.synthesize.write import write_completions
from fastdraft.system.manifest import Manifest
from fastdraft.system.precision import Precision
from fastdraft.system.progress import Bar

PAGE = Path(__file__).parents[2] / "docs" / "extend.md"
BLOCK = re.compile(r"^```python\n# src/(\S+)\.py\n(.*?)^```", re.MULTILINE | re.DOTALL)
BLOCKS = {place.replace("/", "."): code for place, code in BLOCK.findall(PAGE.read_text())}


def run(module: str, **more: Any) -> dict[str, Any]:
    """The namespace of a module after its example has run in it; of a module that does not exist, the example's own."""
    try:
        scope = {**vars(import_module(module)), **more}
    except ModuleNotFoundError:
        scope = {"__name__": module}
    exec(compile(BLOCKS[module], module, "exec"), scope)
    return scope


def test_every_example_is_used_here():
    used = set(re.findall(r"run\(\s*\"([\w.]+)\"", Path(__file__).read_text()))
    assert used == BLOCKS.keys()
    assert PAGE.read_text().count("```python") == len(BLOCKS)


def test_an_objective(monkeypatch):
    monkeypatch.setattr(divergence, "DISTRIBUTION_LOSSES", dict(divergence.DISTRIBUTION_LOSSES))
    loss = run("fastdraft.maths.divergence")["DISTRIBUTION_LOSSES"]["squared_distance"]
    logp_XV, logq_XV = torch.randn(2, 3, 5).log_softmax(-1), torch.randn(2, 3, 5).log_softmax(-1)
    assert torch.equal(loss(logp_XV, logp_XV), torch.zeros(2, 3))
    assert torch.allclose(loss(logp_XV, logq_XV), loss(logq_XV, logp_XV))
    assert (loss(logp_XV, logq_XV) <= 2 * divergence.total_variation(logp_XV, logq_XV)).all()


def test_a_target_family(monkeypatch):
    config, part = AutoConfig.for_model("arcee"), DraftPart(params_millions=50)
    assert derive(config, part).family == "llama"
    monkeypatch.setitem(families.FAMILIES, "arcee", None)  # removed after the test
    run("fastdraft.models.shape.families")
    assert derive(config, part).family == "arcee"


FP32 = Precision(name="fp32", reason="by name")


def test_an_engine_that_runs_the_target(tiny_files, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "ENGINES", dict(engines.ENGINES))
    echo = run("fastdraft.synthesize.engine_echo")["Echo"]
    engine = run("fastdraft.synthesize.engines", Echo=echo)["ENGINES"]["echo"]
    target = TargetPart(path=str(tiny_files / "target"))
    decoding = DecodingParams(13, frozenset({0}), 7, "r", 5, 0)
    setup = engines.EngineSetup(target, None, decoding, torch.device("cpu"), FP32, 97, tmp_path)  # type: ignore[arg-type]
    requests = [Request(np.arange(1 + i % 7) * 5 % 300 + 1, SamplingParams(1.0), i) for i in range(11)]
    rescore, store = rescorer("none", True, lambda: open_model(target, torch.device("cpu"))), CompletionStore(tmp_path)
    for _ in range(2):  # the second time every completion is stored already
        with Bar("test", 11, "completions") as bar:
            assert not write_completions(engine(setup), with_keys(requests, decoding), store, decoding, bar, rescore)
    completions = list(store.read())
    assert len(completions) == 11
    assert all(np.array_equal(completion.tokens, completion.prompt) for completion in completions)
    assert all(np.isfinite(completion.logp).all() for completion in completions)
    assert sum(completion.logp.sum() for completion in completions) < -1


def test_an_engine_to_time(tiny_files, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_engines, "ENGINES", dict(bench_engines.ENGINES))
    eager = run("fastdraft.benchmark.engine_eager")["EagerTransformers"]
    engine = run("fastdraft.benchmark.engines", EagerTransformers=eager)["ENGINES"]["transformers-eager"]
    shutil.copytree(tiny_files / "target", tmp_path / "draft")
    files = PairFiles(
        target=tiny_files / "target",
        draft=tmp_path / "draft",
        target_weights="fp32",
        draft_weights="fp32",
        device="cpu",
        longest_tokens=97,
        eos=frozenset(),
    )
    request = BenchRequest(np.arange(5) * 7 % 300 + 1, SamplingParams(0.0), max_new_tokens=11)
    plain, drafted = (engine.open(files, engine.settings[0]).complete(request, arm) for arm in (NONE, Arm("draft", 3)))
    assert np.array_equal(plain.tokens, drafted.tokens)
    assert len(drafted.blocks) < len(plain.blocks) == len(plain.tokens) == 11


def test_a_task(tiny_files, tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "TASKS", run("fastdraft.evaluation.tasks")["TASKS"])
    records = tmp_path / "records.jsonl"
    records.write_text("".join(json.dumps({"question": f"river {n}?"}) + "\n" for n in range(3)))
    tokenizer = open_tokenizer(TargetPart(path=str(tiny_files / "target")))
    (task,) = tasks.tasks_of([f"trivia_qa={records}"], tokenizer, 97, max_new_tokens=13)
    assert len(task.prompts) == 3
    assert tokenizer.decode(task.prompts[1]).strip() == "Question: river 1?\nAnswer:"


def test_an_export_format(tiny_files, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "FORMATS", dict(formats.FORMATS))
    export_sharded = run("fastdraft.exporters.sharded")["export_sharded"]
    sharded = run("fastdraft.exporters.formats", export_sharded=export_sharded)["FORMATS"]["sharded"]
    notes = sharded.write(tiny_files / "target", tmp_path / "out", "fp32")
    assert notes == ["The weights are in files of at most 100 MB."]
    prompt = np.arange(5) * 7 % 300 + 1
    written, original = (sharded.open(folder, 97) for folder in (tmp_path / "out", tiny_files / "target"))
    assert torch.allclose(written.logits(prompt), original.logits(prompt), atol=1e-2)  # the original is stored in bf16
    assert written.encode("a river") == original.encode("a river")


def test_a_stage(tiny, monkeypatch):
    licence = run("fastdraft.pipeline.licence")
    names = {name: licence[name] for name in ("make_licence", "LicenceCard")}
    monkeypatch.setattr(stages, "STAGES", run("fastdraft.pipeline.stages")["STAGES"])
    monkeypatch.setattr(run_stages, "MAKERS", dict(run_stages.MAKERS))
    run("fastdraft.pipeline.run_stages", **names)
    monkeypatch.chdir(tiny)
    recipe = resolve(Path("recipe.yaml"), ["target.licence=mit"]).recipe
    run_context = RunContext(recipe, Path("runs/licence"), torch.device("cpu"))
    run_context.folder.mkdir(parents=True)
    for outcome in ("made", "already done"):
        manifest = Manifest(run_context.folder, digest(recipe), recipe.seed, run_context.device)
        cards = {}
        for only in ("target", "licence"):
            cards |= run_stages.run_stages(run_context, manifest, only=only)
        assert cards["licence"].licence == "mit"
        assert (
            json.loads((run_context.folder / "manifest.json").read_text())["commands"][-1]["stages"]["licence"]
            == outcome
        )
    assert (run_context.folder / "licence" / "LICENCE.txt").read_text() == "mit\n"
    without = resolve(Path("recipe.yaml")).recipe
    assert "licence" not in [stage.name for stage in stages.stages_of(without)]


def test_a_recipe_key():
    part = run("fastdraft.config.training")["TrainPart"]
    settings = {"mix": {"text": 1}, "train_tokens": 7, "label_smoothing": 0.1, "log_every_steps": 5}
    content = part.model_validate(settings).key_content()
    assert content["label_smoothing"] == 0.1
    assert "log_every_steps" not in content
    with pytest.raises(ValidationError, match="label_smoothing"):
        part.model_validate(settings | {"label_smoothing": 2})


def test_the_chain_by_hand():
    """docs/maths.md, "By hand"."""
    counts = acceptance.chain(torch.tensor([[1 / 2, 1 / 4, 1]]), torch.tensor([3]), 1)
    assert counts.forwards_B.item() == pytest.approx(19 / 8)
    assert counts.position_accepted_BG.sum().item() == pytest.approx(3 / 2)
