"""The precision of a device: `auto` is the faster one, a requested one is used, and a run records it."""

import json
import shutil
from pathlib import Path
from time import perf_counter

import pytest
import torch

from fastdraft.config import TargetPart
from fastdraft.config.resolve import resolve, resolved_yaml
from fastdraft.models.draft import DraftCard
from fastdraft.models.run_context import RunContext
from fastdraft.models.target import precision_of
from fastdraft.pipeline.run_stages import run_stages
from fastdraft.results.evaluation import EvaluationCard
from fastdraft.synthesize.completions_card import CompletionsCard
from fastdraft.system import precision
from fastdraft.system.cards import read_card
from fastdraft.system.errors import RecipeError
from fastdraft.system.manifest import Manifest
from fastdraft.system.precision import Precision, PrecisionWarning, choose

CPU = torch.device("cpu")


def product_seconds(dtype: torch.dtype) -> float:
    left, right, times = torch.randn(211, 307).to(dtype), torch.randn(307, 199).to(dtype), []
    for _ in range(5):
        begin = perf_counter()
        left @ right
        times.append(perf_counter() - begin)
    return min(times)


def test_auto_is_the_faster_precision() -> None:
    ratio = product_seconds(torch.float32) / product_seconds(torch.bfloat16)
    if 0.7 < ratio < 2:
        pytest.skip(f"bf16 products run at {ratio:.2g} times the rate of fp32 here: either precision is right")
    chosen = choose("auto", CPU)
    assert chosen.name == ("bf16" if ratio > 1 else "fp32")
    assert chosen.reason.startswith("bf16 matrix products are " + ("faster" if ratio > 1 else "not faster"))


@pytest.mark.parametrize(("capability", "name"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_cuda_uses_bf16_from_compute_capability_8(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], name: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    fastest = precision.fastest(torch.device("cuda", capability[0]))
    assert fastest.name == name
    assert f"{capability[0]}.{capability[1]}" in fastest.reason


def test_a_requested_precision_is_used_and_a_slow_one_warns_once(recwarn: pytest.WarningsRecorder) -> None:
    choose.cache_clear()
    assert [choose("fp32", CPU).name, choose("bf16", CPU).name, choose("bf16", CPU).name] == ["fp32", "bf16", "bf16"]
    warnings = [warning for warning in recwarn if warning.category is PrecisionWarning]
    assert len(warnings) == (choose("auto", CPU).name == "fp32")
    assert all(f"{precision.bf16_ratio(CPU):.2g} times the rate" in str(warning.message) for warning in warnings)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_auto_keeps_fp32_for_a_target_stored_in_fp32(tiny_llama, tmp_path: Path, stored: torch.dtype) -> None:
    tiny_llama(7).to(stored).save_pretrained(tmp_path)
    chosen = precision_of(TargetPart(path=str(tmp_path)), "auto", CPU)
    assert chosen.name == ("fp32" if stored == torch.float32 else choose("auto", CPU).name)


def test_resolved_yaml_comments_auto_with_the_chosen_precision(tiny: Path) -> None:
    resolved = resolve(tiny / "recipe.yaml", ["pretrain.precision=auto"])
    text = resolved_yaml(resolved, RunContext(resolved.recipe, tiny, CPU).automatic())
    chosen = choose("auto", CPU)
    lines = [line for line in text.splitlines() if "precision: auto" in line]
    assert len(lines) == 3, "pretrain, and by default synthesize and evaluate"
    assert all(f"derived: {chosen.name}, {chosen.reason}" in line for line in lines)
    (tiny / "resolved.yaml").write_text(text)
    assert resolve(tiny / "resolved.yaml").recipe == resolved.recipe


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::fastdraft.system.precision.PrecisionWarning")
def test_requested_bf16_is_used_in_every_stage_and_verified_in_fp32(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although the target is stored in fp32. The verification generates with the target in fp32."""
    monkeypatch.chdir(tiny)
    parts = ("pretrain", "continue", "synthesize", "align", "evaluate")
    recipe = resolve(Path("recipe.yaml"), [f"{part}.precision=bf16" for part in parts]).recipe
    run = tiny / "runs" / "tiny"
    run.mkdir(parents=True)
    run_stages(RunContext(recipe, run, CPU), Manifest(run, "digest", 7, CPU))
    kinds = {"synthesize": CompletionsCard, "evaluate": EvaluationCard}
    cards = {part: read_card(run / part, kinds.get(part, DraftCard)) for part in parts}
    assert {part: card.precision.name for part, card in cards.items()} == dict.fromkeys(parts, "bf16")
    verified = cards["evaluate"].verified
    assert [len(results) for results in verified.values()] == [2, 2]
    assert all(result.compared == 11 for results in verified.values() for result in results if result.temperature == 0)


def test_a_stage_that_is_resumed_on_another_machine_keeps_its_precision(tiny: Path) -> None:
    recorded = Precision(name="bf16", reason="bf16 is faster on the first machine")
    folder = tiny / "run" / "pretrain"
    folder.mkdir(parents=True)
    (folder / "precision.json").write_text(json.dumps(recorded.model_dump()))
    run_context = RunContext(resolve(tiny / "recipe.yaml").recipe, tiny / "run", CPU)
    assert run_context.precision(folder, "auto") == recorded
    shutil.rmtree(folder)
    assert run_context.precision(folder, "auto") == choose("auto", CPU)
    assert Precision.model_validate_json((folder / "precision.json").read_text()) == choose("auto", CPU)


def test_an_unknown_precision_is_an_error(tiny: Path) -> None:
    with pytest.raises(RecipeError, match=r"pretrain.precision: found fp8"):
        resolve(tiny / "recipe.yaml", ["pretrain.precision=fp8"])
