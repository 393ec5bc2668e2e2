"""The examples of docs/extend.md work: each block is run in the module that it names, and what it adds is used."""

import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from fastdraft.config import DraftPart, TargetPart
from fastdraft.evaluate import tasks
from fastdraft.maths import acceptance, divergence
from fastdraft.models.shape import derive, families
from fastdraft.models.target import open_model, open_tokenizer
from fastdraft.synthesize import engines
from fastdraft.synthesize.completions import CompletionStore, Request, SamplingParams
from fastdraft.synthesize.rescore import rescorer
from fastdraft.synthesize.write import Decoding, keyed, write
from fastdraft.system.precision import Precision
from fastdraft.system.progress import Bar

PAGE = Path(__file__).parents[2] / "docs" / "extend.md"
BLOCK = re.compile(r"^```python\n# src/(\S+)\.py\n(.*?)^```", re.MULTILINE | re.DOTALL)
BLOCKS = {place.replace("/", "."): code for place, code in BLOCK.findall(PAGE.read_text())}


def run(module: str, **more: Any) -> dict[str, Any]:
    """The names of a module, with what its example adds; of no module yet, those of the example."""
    try:
        scope = {**vars(import_module(module)), **more}
    except ModuleNotFoundError:
        scope = {"__name__": module}
    exec(compile(BLOCKS[module], module, "exec"), scope)
    return scope


def test_every_example_is_used_here():
    named = set(re.findall(r"run\(\"([\w.]+)\"", Path(__file__).read_text()))
    assert named == BLOCKS.keys()
    assert PAGE.read_text().count("```python") == len(BLOCKS)


def test_a_loss(monkeypatch):
    monkeypatch.setattr(divergence, "DISTRIBUTION_LOSSES", dict(divergence.DISTRIBUTION_LOSSES))
    loss = run("fastdraft.maths.divergence")["DISTRIBUTION_LOSSES"]["squared_distance"]
    logp_XV, logq_XV = torch.randn(2, 3, 5).log_softmax(-1), torch.randn(2, 3, 5).log_softmax(-1)
    assert torch.equal(loss(logp_XV, logp_XV), torch.zeros(2, 3))
    assert torch.allclose(loss(logp_XV, logq_XV), loss(logq_XV, logp_XV))
    assert (loss(logp_XV, logq_XV) <= 2 * divergence.total_variation(logp_XV, logq_XV)).all()


def test_a_family(monkeypatch):
    config, wanted = AutoConfig.for_model("arcee"), DraftPart(params_millions=50)
    assert derive(config, wanted).family == "llama"
    monkeypatch.setitem(families.FAMILIES, "arcee", None)  # gone again at the end
    run("fastdraft.models.shape.families")
    assert derive(config, wanted).family == "arcee"


FP32 = Precision(name="fp32", reason="by name")


def test_a_way_to_run_the_target(tiny_files, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "ENGINES", dict(engines.ENGINES))
    echo = run("fastdraft.synthesize.engine_echo")["Echo"]
    engine = run("fastdraft.synthesize.engines", Echo=echo)["ENGINES"]["echo"]
    target = TargetPart(path=str(tiny_files / "target"))
    decoding = Decoding(13, frozenset({0}), 7, "r", 5, 0)
    setup = engines.Setup(target, None, decoding, torch.device("cpu"), FP32, 97, tmp_path)  # type: ignore[arg-type]
    asked = [Request(np.arange(1 + i % 7) * 5 % 300 + 1, SamplingParams(1.0), i) for i in range(11)]
    rescore, store = rescorer("none", True, lambda: open_model(target, torch.device("cpu"))), CompletionStore(tmp_path)
    for _ in range(2):  # the second time all is there
        with Bar("test", 11, "rows") as bar:
            assert not write(engine(setup), keyed(asked, decoding), store, decoding, bar, rescore)
    rows = list(store.read())
    assert len(rows) == 11
    assert all(np.array_equal(row.tokens, row.prompt) for row in rows)
    assert all(np.isfinite(row.logp).all() for row in rows)
    assert sum(row.logp.sum() for row in rows) < -1


def test_a_task(tiny_files, tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "TASKS", run("fastdraft.evaluate.tasks")["TASKS"])
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"question": f"river {n}?"}) + "\n" for n in range(3)))
    tokenizer = open_tokenizer(TargetPart(path=str(tiny_files / "target")))
    (task,) = tasks.tasks_of([f"trivia_qa={rows}"], tokenizer, 97, max_new_tokens=13)
    assert len(task.prompts) == 3
    assert tokenizer.decode(task.prompts[1]).strip() == "Question: river 1?\nAnswer:"


def test_the_chain_by_hand():
    """docs/maths.md, "By hand"."""
    counts = acceptance.chain(torch.tensor([[1 / 2, 1 / 4, 1]]), torch.tensor([3]), 1)
    assert counts.forwards_B.item() == pytest.approx(19 / 8)
    assert counts.position_accepted_BG.sum().item() == pytest.approx(3 / 2)
