"""The shipped recipes: they resolve, give drafts of the size in their names, and match the documentation."""

import re
from pathlib import Path

import pytest
from transformers import AutoConfig, PretrainedConfig

from fastdraft.config import Recipe
from fastdraft.config.resolve import resolve, resolved_yaml
from fastdraft.config.schema import schema_markdown
from fastdraft.models.architecture import parameters
from fastdraft.models.shape import DraftShape, default_budget_millions, derive, smallest

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").rglob("*.y*ml"))
CONFIGS = ROOT.parent / "shared" / "data" / "configs"
# Recipes of published targets are named TARGET-SIZE, with the draft's size; in that of SmolLM2-135M it is the target's.
SIZED = [path for path in RECIPES if re.search(r"-\d+m$", path.stem) and path.stem != "smollm2-135m"]
PAPERS = ("phi3-mini-50m", "phi3-mini-120m", "llama3.1-8b-150m")
# Targets whose configuration is read from another model's folder: their sizes are the same.
CONFIG_FOLDERS = {"Llama-3.1-8B-Instruct": "Llama-3.1-8B"}
GEMMA_3_4B = {
    "vocab_size": 262208,
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 34,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "sliding_window": 1024,
    "max_position_embeddings": 131072,
}


def recipe_of(name: str) -> Recipe:
    return resolve(ROOT / "recipes" / f"{name}.yaml").recipe


def target_of(recipe: Recipe) -> PretrainedConfig:
    """The published configuration of a recipe's target."""
    name = recipe.target.path.rpartition("/")[2]
    if name == "gemma-3-4b-it":
        return AutoConfig.for_model("gemma3", text_config={"model_type": "gemma3_text", **GEMMA_3_4B})
    folder = CONFIGS / CONFIG_FOLDERS.get(name, name)
    if not folder.is_dir():
        pytest.skip(f"no configuration of {name} at ../shared/data/configs, next to the repository")
    return AutoConfig.from_pretrained(folder)


def draft_of(path: Path) -> DraftShape:
    recipe = resolve(path).recipe
    return derive(target_of(recipe), recipe.draft)


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 10
    assert len(SIZED) >= 7
    assert {path.stem for path in SIZED} >= set(PAPERS)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_shipped_recipe_resolves(path: Path, tmp_path: Path) -> None:
    resolved = resolve(path)
    again = tmp_path / "resolved.yaml"
    again.write_text(resolved_yaml(resolved), encoding="utf-8")
    assert resolve(again).recipe == resolved.recipe


@pytest.mark.parametrize("path", SIZED, ids=lambda path: path.name)
def test_the_draft_has_the_size_in_the_name_of_the_recipe(path: Path) -> None:
    """Within 2 %; k-quants can store it, it has the target's vocabulary, and a layer with full attention."""
    shape, target = draft_of(path), target_of(resolve(path).recipe)
    millions = float(path.stem.rpartition("-")[2].removesuffix("m"))
    assert shape.parameters == pytest.approx(millions * 1e6, rel=0.02)
    assert shape.k_quants
    assert shape.vocab_rows == target.get_text_config().vocab_size
    assert "full_attention" in shape.config.get("layer_types", ["full_attention"])
    assert len(shape.notes) == (1 if target.get_text_config() is not target else 0)


@pytest.mark.parametrize("path", SIZED, ids=lambda path: path.name)
def test_the_comment_above_the_draft_has_its_parameters(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    comment = re.search(r"(\d+\.\d)M[^\n]*(\n#[^\n]*)*\ndraft:|to (\d+\.\d)M\.\ndraft:", text)
    assert comment, "no comment above `draft:` gives its size"
    assert f"{draft_of(path).parameters / 1e6:.1f}" == (comment[1] or comment[3])


@pytest.mark.parametrize("path", SIZED, ids=lambda path: path.name)
def test_a_recipe_has_the_name_of_its_file_and_data_from_the_hub(path: Path) -> None:
    recipe = resolve(path).recipe
    assert recipe.name == path.stem
    assert recipe.synthesize is not None
    sets = [*recipe.corpus.values(), *recipe.synthesize.prompt_sets.values()]
    assert len(sets) >= 5
    for part in sets:
        assert part.source == "hub"
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", str(part.path))


@pytest.mark.parametrize("path", SIZED, ids=lambda path: path.name)
def test_a_recipe_follows_the_paper(path: Path) -> None:
    """PT: 5B tokens of text. CP: 5B of code, 2.5B of text. Synthesis: greedy and three temperatures.

    The paper's own drafts are aligned by cross entropy, all others to the offline distribution.
    """
    recipe = resolve(path).recipe
    pretrain, continued, synthesis, align = recipe.pretrain, recipe.continue_, recipe.synthesize, recipe.align
    assert None not in (pretrain, continued, synthesis, align)
    assert (pretrain.mix, pretrain.train_tokens) == ({"text": 1.0}, 5_000_000_000)
    weights = continued.mix
    tokens = {name: weight / sum(weights.values()) * continued.train_tokens for name, weight in weights.items()}
    assert tokens == pytest.approx({"code": 5e9, "text": 2.5e9})
    assert recipe.corpus["text"].path == "HuggingFaceFW/fineweb"
    assert set(synthesis.temperatures) == {0.0, 0.6, 0.8, 1.0}
    assert len(set(synthesis.temperatures.values())) == 1
    assert align.mix == {"synthetic": 1.0}
    assert (pretrain.objective, continued.objective) == ("cross_entropy", "cross_entropy")
    if path.stem in PAPERS:
        assert (align.objective, synthesis.top_logprobs) == ("cross_entropy", 0)
    else:
        assert align.objective == {"forward_kl": 0.5, "total_variation": 0.5}
        assert (align.teacher_logits, synthesis.top_logprobs) == ("offline", 16)


@pytest.mark.parametrize("name", PAPERS)
def test_the_papers_drafts_use_its_prompts(name: str) -> None:
    """Alpaca, OIG, Evol-Instruct, and instructions that the target generates by Magpie."""
    synthesis = recipe_of(name).synthesize
    assert synthesis is not None
    paths = {part.path for part in synthesis.prompt_sets.values()}
    assert paths == {"tatsu-lab/alpaca", "0-hero/OIG-small-chip2", "WizardLMTeam/WizardLM_evol_instruct_70k"}
    assert set(synthesis.mix) == {*synthesis.prompt_sets, "magpie"}


def test_the_papers_targets() -> None:
    assert {recipe_of(name).target.path for name in PAPERS} == {
        "microsoft/Phi-3-mini-4k-instruct",
        "meta-llama/Llama-3.1-8B-Instruct",
    }
    assert draft_of(ROOT / "recipes" / "phi3-mini-50m.yaml").layers == 10


def test_the_page_on_shapes_lists_every_recipe() -> None:
    page = (ROOT / "docs" / "shapes.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w.-]+)` \| ([\w./-]+) \| (\d+) x (\d+) \| ([\d.]+)M \|$", page, re.MULTILINE)
    assert {name for name, *_ in rows} == {path.stem for path in SIZED}
    for name, target, width, layers, millions in rows:
        shape = draft_of(ROOT / "recipes" / f"{name}.yaml")
        assert recipe_of(name).target.path == target
        assert (shape.hidden_size, shape.layers) == (int(width), int(layers))
        assert f"{shape.parameters / 1e6:.1f}" == millions


@pytest.mark.parametrize("target", ["TinyLlama-1.1B", "Qwen2.5-0.5B", "SmolLM2-135M", "Llama-3.1-8B", "gpt2"])
def test_the_demo_recipe_has_a_draft_for_any_target(target: str) -> None:
    """`fastdraft run recipes/demo.yaml target.path=TARGET`: the recipe gives no size that belongs to its own target."""
    if not CONFIGS.is_dir():
        pytest.skip("no published configurations at ../shared/data/configs, next to the repository")
    config = AutoConfig.from_pretrained(CONFIGS / target)
    shape = derive(config, recipe_of("demo").draft)
    assert shape.parameters < parameters(config) / 3
    assert shape.layers >= 3


@pytest.mark.parametrize(("name", "expected"), [("Llama-3.1-8B", "130M"), ("gemma-2-2b", "71M")])
def test_the_page_on_shapes_has_the_default_budgets(name: str, expected: str) -> None:
    if not CONFIGS.is_dir():
        pytest.skip("no published configurations at ../shared/data/configs, next to the repository")
    target = AutoConfig.from_pretrained(CONFIGS / name)
    budget = default_budget_millions(parameters(target), smallest(target).parameters)
    assert f"{budget:g}M" == expected
    assert expected in (ROOT / "docs" / "shapes.md").read_text(encoding="utf-8")


def test_the_reference_page_is_generated_from_the_schema() -> None:
    page = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    assert page == schema_markdown(), "do: fastdraft recipe schema --markdown > docs/recipe.md"
