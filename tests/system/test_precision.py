"""What a device computes in: the faster precision, by itself; any, by name; and what a run reports of it."""

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
from fastdraft.pipeline.stages import run_stages
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


def test_auto_is_what_multiplies_faster() -> None:
    ratio = product_seconds(torch.float32) / product_seconds(torch.bfloat16)
    if 0.7 < ratio < 2:
        pytest.skip(f"bf16 products run at {ratio:.2g} times the rate of fp32 here: either precision is right")
    found = choose("auto", CPU)
    assert found.name == ("bf16" if ratio > 1 else "fp32")
    assert found.reason.startswith("bf16 matrix products are " + ("faster" if ratio > 1 else "not faster"))


@pytest.mark.parametrize(("capability", "name"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_cuda_has_bf16_from_capability_8_on(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], name: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    found = precision.fastest(torch.device("cuda", capability[0]))
    assert found.name == name
    assert f"{capability[0]}.{capability[1]}" in found.reason


def test_a_name_is_taken_and_a_slow_one_warns_once_with_the_ratio(recwarn: pytest.WarningsRecorder) -> None:
    choose.cache_clear()
    assert [choose("fp32", CPU).name, choose("bf16", CPU).name, choose("bf16", CPU).name] == ["fp32", "bf16", "bf16"]
    found = [warning for warning in recwarn if warning.category is PrecisionWarning]
    assert len(found) == (choose("auto", CPU).name == "fp32")
    assert all(f"{precision.bf16_ratio(CPU):.2g} times the rate" in str(warning.message) for warning in found)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_auto_never_rounds_weights_that_are_stored_in_fp32(tiny_llama, tmp_path: Path, stored: torch.dtype) -> None:
    tiny_llama(7).to(stored).save_pretrained(tmp_path)
    found = precision_of(TargetPart(path=str(tmp_path)), "auto", CPU)
    assert found.name == ("fp32" if stored == torch.float32 else choose("auto", CPU).name)


def test_the_recipe_reports_what_auto_became_and_still_loads_as_auto(tiny: Path) -> None:
    resolved = resolve(tiny / "recipe.yaml", ["pretrain.precision=auto"])
    text = resolved_yaml(resolved, RunContext(resolved.recipe, tiny, CPU).automatic())
    found = choose("auto", CPU)
    lines = [line for line in text.splitlines() if "precision: auto" in line]
    assert len(lines) == 3, "pretrain, and by default synthesize and evaluate"
    assert all(f"derived: {found.name}, {found.reason}" in line for line in lines)
    (tiny / "resolved.yaml").write_text(text)
    assert resolve(tiny / "resolved.yaml").recipe == resolved.recipe


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::fastdraft.system.precision.PrecisionWarning")
def test_bf16_by_name_goes_through_every_stage_and_is_verified_in_fp32(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what the target stores in fp32; the verification compares with what the fp32 target writes."""
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


def test_a_stage_that_is_resumed_elsewhere_keeps_its_precision(tiny: Path) -> None:
    began = Precision(name="bf16", reason="made on a machine that multiplies it faster")
    folder = tiny / "run" / "pretrain"
    folder.mkdir(parents=True)
    (folder / "precision.json").write_text(json.dumps(began.model_dump()))
    run_context = RunContext(resolve(tiny / "recipe.yaml").recipe, tiny / "run", CPU)
    assert run_context.precision(folder, "auto") == began
    shutil.rmtree(folder)
    assert run_context.precision(folder, "auto") == choose("auto", CPU)
    assert Precision.model_validate_json((folder / "precision.json").read_text()) == choose("auto", CPU)


def test_an_unknown_precision_is_refused_by_name(tiny: Path) -> None:
    with pytest.raises(RecipeError, match=r"pretrain.precision: found fp8"):
        resolve(tiny / "recipe.yaml", ["pretrain.precision=fp8"])
