"""Every recipe that is shipped can be run, and the reference page says what the schema says."""

from pathlib import Path

import pytest

from fastdraft.resolve import resolve, resolved_yaml
from fastdraft.schema import schema_markdown

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").rglob("*.y*ml"))


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 1


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_shipped_recipe_resolves(path: Path, tmp_path: Path) -> None:
    resolved = resolve(path)
    again = tmp_path / "resolved.yaml"
    again.write_text(resolved_yaml(resolved), encoding="utf-8")
    assert resolve(again).recipe == resolved.recipe


def test_the_reference_page_is_printed_from_the_schema() -> None:
    page = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    assert page == schema_markdown(), "do: fastdraft recipe schema --markdown > docs/recipe.md"
