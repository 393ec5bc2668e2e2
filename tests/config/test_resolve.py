"""Resolving a recipe: the command line overrides the file, the file overrides the defaults; errors name the key."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fastdraft.config import Recipe, TrainPart
from fastdraft.config.part import NAME, as_name
from fastdraft.config.resolve import Resolved, digest, resolve, resolved_yaml
from fastdraft.config.schema import schema_json, schema_markdown
from fastdraft.system.errors import RecipeError

SMALL = """\
name: small
target: {path: demo}
draft: {params_millions: 5}
corpus:
  code: {source: text, path: code.txt}
  text: {source: text, path: text.txt}
pretrain:
  mix: {code: 0.3, text: 0.7}
  train_tokens: 1_000_000
  learning_rate: 5e-3
  compile: yes
"""
ResolveText = Callable[..., Resolved]


@pytest.fixture
def resolve_text(tmp_path: Path) -> ResolveText:
    """Write a text to small.yaml and resolve it with overrides."""

    def write(*overrides: str, text: str | bytes = SMALL) -> Resolved:
        path = tmp_path / "small.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return resolve(path, overrides)

    return write


def _pretrain(resolved: Resolved) -> TrainPart:
    assert resolved.recipe.pretrain is not None
    return resolved.recipe.pretrain


def test_origins_name_the_file_the_command_line_or_the_default(resolve_text: ResolveText) -> None:
    resolved = resolve_text("seed=11", "pretrain.mix.code=0.5", "synthesize={mix: {code: 1}, prompts: 3}")
    assert {key: resolved.origins[key] for key in ("name", "pretrain.mix.text", "pretrain.learning_rate")} == {
        "name": "small.yaml",
        "pretrain.mix.text": "small.yaml",
        "pretrain.learning_rate": "small.yaml",
    }
    overridden = {key for key, origin in resolved.origins.items() if origin == "command line"}
    assert overridden == {"seed", "pretrain.mix.code", "synthesize.mix.code", "synthesize.prompts"}
    assert resolved.origins["synthesize.max_prompt_tokens"] == resolved.origins["align"] == "default"
    assert not any("continue_" in key for key in resolved.origins)


def test_an_override_changes_only_its_key(resolve_text: ResolveText) -> None:
    before, after = resolve_text().recipe, resolve_text("corpus.code.path=other.txt").recipe
    assert after.corpus["code"].path == "other.txt"
    corpus = {**before.corpus, "code": before.corpus["code"].model_copy(update={"path": "other.txt"})}
    assert after == before.model_copy(update={"corpus": corpus})


def test_the_last_override_wins(resolve_text: ResolveText) -> None:
    assert resolve_text("seed=11", "seed=13").recipe.seed == 13
    assert resolve_text("seed=11", "pretrain=null", "seed=17").recipe.pretrain is None


def test_overrides_of_its_keys_create_a_missing_part(resolve_text: ResolveText) -> None:
    part = resolve_text("continue.mix={code: 1}", "continue.train_tokens=5e5").recipe.continue_
    assert part == TrainPart(mix={"code": 1.0}, train_tokens=500_000)


def test_an_override_changes_only_one_of_two_parts_with_one_anchor(resolve_text: ResolveText) -> None:
    text = SMALL.replace("pretrain:\n", "pretrain: &phase\n") + "continue: *phase\n"
    recipe = resolve_text("continue.mix.code=0.9", text=text).recipe
    assert recipe.pretrain is not None
    assert recipe.continue_ is not None
    assert (recipe.pretrain.mix["code"], recipe.continue_.mix["code"]) == (0.3, 0.9)


@pytest.mark.parametrize("number", ["500000", "500_000", "5e5", "5.0e5", "5E+5", "500_000.0"])
def test_all_notations_of_a_number_are_read(resolve_text: ResolveText, number: str) -> None:
    from_file = _pretrain(resolve_text(text=SMALL.replace("1_000_000", number)))
    overridden = _pretrain(resolve_text(f"pretrain.train_tokens={number}", f"pretrain.gradient_clip={number}"))
    assert from_file.train_tokens == overridden.train_tokens == overridden.gradient_clip == 500_000


@pytest.mark.parametrize("text", ["yes", "true", "2026-01-02", "'12'", "a=b", ""])
def test_text_stays_text(resolve_text: ResolveText, text: str) -> None:
    assert resolve_text(f"target.revision={text}").recipe.target.revision == (text.strip("'") or None)


def test_an_override_may_be_a_flow_collection(resolve_text: ResolveText) -> None:
    recipe = resolve_text("evaluate={tasks: [code, text], gammas: [2, 5]}", "evaluate.temperatures=[0, 7e-1]").recipe
    assert recipe.evaluate is not None
    assert (recipe.evaluate.tasks, recipe.evaluate.gammas) == (("code", "text"), (2, 5))
    assert recipe.evaluate.temperatures == (0.0, 0.7)


@pytest.mark.parametrize(
    "text", ["plain", "5e5", "true", "7", "null", "~", "a: b # c", "a\nb\u2028c", "é '\"\\", " ", ""]
)
def test_resolved_yaml_loads_back_to_an_equal_recipe(resolve_text: ResolveText, tmp_path: Path, text: str) -> None:
    overrides = ["continue={mix: {text: 1}, train_tokens: 3}", "synthesize={mix: {code: 1}, prompts: 3}"]
    names = [text] if re.fullmatch(NAME, text) else []
    sources = json.dumps({name: {"source": "text", "separator": text} for name in (*names, "code", "text")})
    resolved = resolve_text(*overrides, f"target.path={json.dumps(text)}", f"corpus={sources}")
    again = tmp_path / "resolved.yaml"
    again.write_text(resolved_yaml(resolved, {"draft.layers": "4, width first,\nthen depth"}), encoding="utf-8")
    assert resolve(again).recipe == resolved.recipe
    assert resolve(again).origins.keys() == resolved.origins.keys()


def _places_of(kind: Any, schema: dict[str, Any], place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every part of the JSON Schema of a recipe, with its place."""
    kind = schema["$defs"][kind["$ref"].rpartition("/")[2]] if "$ref" in kind else kind
    yield place, kind
    inner = [*kind.get("anyOf", ()), *kind.get("patternProperties", {}).values()]
    inner += [kind[key] for key in ("items", "additionalProperties") if kind.get(key)]
    for each in inner:
        yield from _places_of(each, schema, place)
    for key, each in kind.get("properties", {}).items():
        yield from _places_of(each, schema, f"{place}.{key}".removeprefix("."))


def test_every_mapping_of_parts_has_names_as_keys() -> None:
    """A key that a user invents for a part names a folder or a file."""
    schema = schema_json()
    places = list(_places_of(schema, schema))
    named = {place: [*kind["patternProperties"]] for place, kind in places if "patternProperties" in kind}
    assert named == {key: [f"^{NAME}$"] for key in ("corpus", "synthesize.prompt_sets")}
    assert [place for place, kind in places if "$ref" in (kind.get("additionalProperties") or {})] == []


@pytest.mark.parametrize("key", ["name", "corpus", "synthesize.prompt_sets"])
@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            "../elsewhere",
            "../../../victim",
            "/tmp/victim",
            "a/b",
            "a\\b",
            ".hidden",
            ".",
            "..",
            "two words",
            "a\nb",
        ),
        *("é", "-x", "x" * 65, "key", "lock", "card.json", "tokenizer.json", "text.attempts", "a.fastdraft-old"),
    ],
)
def test_a_name_that_cannot_be_a_folder_is_an_error(resolve_text: ResolveText, key: str, name: str) -> None:
    text = json.dumps(name)
    override = {
        "name": f"name={text}",
        "corpus": f"corpus={{code: {{source: text}}, text: {{source: text}}, {text}: {{source: text}}}}",
        "synthesize.prompt_sets": f"synthesize={{mix: {{code: 1}}, prompts: 1, prompt_sets: {{{text}: "
        "{source: jsonl, path: a}}}",
    }[key]
    with pytest.raises(RecipeError, match=rf"1 problem\n  {re.escape(key)}\b.*: found .*, wanted "):
        resolve_text(override)


@pytest.mark.parametrize("text", ["../../victim", "my logs", "", "...", "key", "狐", "x" * 300, "a.attempts", "logs-2"])
def test_any_text_becomes_a_name(resolve_text: ResolveText, text: str) -> None:
    assert resolve_text(f"name={as_name(text)}").recipe.name == as_name(text)
    assert as_name("logs-2") == "logs-2"


def test_every_whole_number_has_an_upper_limit() -> None:
    schema = schema_json()
    numbers = [(place, kind) for place, kind in _places_of(schema, schema) if kind.get("type") == "integer"]
    assert len(numbers) >= 50
    assert [place for place, kind in numbers if "maximum" not in kind] == []


@pytest.mark.parametrize("number", ["1e8", "100000000000000000000", "0x" + "f" * 30, "1e300"])
@pytest.mark.parametrize("key", ["pretrain.sequence_tokens", "draft.layers", "threads", "pretrain.batch_size"])
def test_a_number_above_its_limit_is_explained(resolve_text: ResolveText, key: str, number: str) -> None:
    with pytest.raises(RecipeError, match=rf"1 problem\n  {key}: found .*, wanted .* \(command line\)\n  do: "):
        resolve_text(f"{key}={number}")


def test_resolved_yaml_comments_each_value_with_its_origin_or_derivation(resolve_text: ResolveText) -> None:
    text = resolved_yaml(resolve_text("seed=11"), {"draft.layers": "4, width first, then depth"})
    lines = text.splitlines()
    assert lines[:2] == ["name: small  # small.yaml", "seed: 11  # command line"]
    assert "  layers: null  # derived: 4, width first, then depth" in lines
    assert "    code: 0.3  # small.yaml" in lines
    assert "continue: null  # default" in lines
    assert all(line.endswith(":") or "  # " in line for line in lines)
    with pytest.raises(AssertionError, match=re.escape("not keys of this recipe: {'draft.depth'}")):
        resolved_yaml(resolve_text(), {"draft.depth": 4})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("draft.layer=3", "draft.layer: no such key in draft, the nearest is draft.layers (command line)"),
        ("continue_={}", "continue_: no such key, the nearest is continue (command line)"),
        ("corpus.code.qqq=3", "corpus.code.qqq: no such key in corpus.code, wanted one of source, path, subset, "),
        ("draft={layer: 3, params_millions: 5}", "draft.layer: no such key in draft, the nearest is draft.layers"),
        ("seed.x=3", "seed.x: no such key, seed is set as a whole (command line)"),
        ("pretrain.mix.a.b=1", "pretrain.mix.a.b: no such key, pretrain.mix.a is set as a whole"),
        ("synthesize.temperatures.0.6=2", "no such key, synthesize.temperatures is set as a whole"),
        ("seed=many", "seed: found many, wanted a whole number (command line)"),
        ("seed=1.5", "seed: found 1.5, wanted a whole number"),
        ("seed=-1", "seed: found -1, wanted 0 or more"),
        ("threads=true", "threads: found 'true', wanted a whole number"),
        ("pretrain.learning_rate=fast", "pretrain.learning_rate: found fast, wanted a number"),
        ("pretrain.compile=5", "pretrain.compile: found 5, wanted true or false"),
        ("pretrain.optimizer=sgd", "pretrain.optimizer: found sgd, wanted 'muon' or 'adamw'"),
        (
            "target.revision=1234567",
            "target.revision: found 1234567, wanted text (in quotes where it looks like a number)",
        ),
        ("target=demo", "target: found demo, wanted a mapping of keys to values"),
        ("evaluate.tasks=code", "evaluate.tasks: found code, wanted a list"),
        ("pretrain.mix={}", "pretrain.mix: found {}, wanted at least one entry"),
        ("corpus={1: {source: text}}", "corpus.1: found 1, wanted text"),
        ("draft={1: 2}", "draft.1: found 1, wanted text as a key"),
        (f"seed={'9a' * 99}", f"seed: found {'9a' * 50} ..., wanted a whole number"),
        ("pretrain.mix.news=1", "recipe: pretrain.mix names news; this recipe has code, text"),
        ("synthesize.prompts=3", "synthesize.mix: missing, wanted: Fraction of the prompts from each source"),
        ("seed", "command line: found `seed`, wanted key=value with a dotted key\n  do: write it like"),
        ("draft..layers=3", "command line: found `draft..layers=3`, wanted key=value"),
        ("name=*.txt", "command line, `name=*.txt`, line 1: expected alphabetic or numeric character"),
    ],
)
def test_a_wrong_override_is_explained(resolve_text: ResolveText, override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)) as caught:
        resolve_text(override)
    assert str(caught.value).splitlines()[-1].startswith("  do: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SMALL + "sed: 3\n", "small.yaml: 1 problem\n  sed: no such key, the nearest is seed\n  do: "),
        (SMALL + "continue_: {}\n", "continue_: no such key, the nearest is continue\n"),
        (
            SMALL + "seed: x\nevaluate: {}\n",
            "2 problems\n  seed: found x, wanted a whole number\n  evaluate.tasks: missing",
        ),
        (SMALL + "name: again\n", "small.yaml, line 12: the key `name` is repeated, wanted YAML\n  do: "),
        (SMALL + "synthesize: {temperatures: {1: 1, 1.0: 2}}", "line 12: the key `1.0` is repeated"),
        (SMALL + "evaluate:\n  tasks: [code\nalign: null\n", "small.yaml, line 14: expected ',' or ']', but got ':'"),
        (SMALL + "? [a]\n: 3\n", "small.yaml, line 12: found unhashable key"),
        (SMALL + "seed: \0\n", "small.yaml: unacceptable character #x0000"),
        (SMALL + "seed: 0x_\n", "small.yaml: invalid literal for int() with base 16"),
        ("", "small.yaml: found null, wanted a mapping of keys to values\n  do: "),
        ("- name", "small.yaml: found [name], wanted a mapping of keys to values\n  do: "),
        (b"name: \xe9t\xe9", "small.yaml: byte 6 is not UTF-8, wanted a YAML file in UTF-8\n  do: "),
    ],
)
def test_a_wrong_file_is_explained(resolve_text: ResolveText, text: str | bytes, message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        resolve_text(text=text)


def test_every_problem_of_file_and_command_line_is_listed(resolve_text: ResolveText) -> None:
    with pytest.raises(RecipeError, match=r"small\.yaml: 4 problems") as caught:
        resolve_text("drat=3", "seed=-1", text=SMALL.replace("name: small\n", "nam: small\n"))
    keys = [line.split(":")[0].strip() for line in str(caught.value).splitlines()[1:]]
    assert sorted(keys) == ["do", "drat", "nam", "name", "seed"]


def test_a_missing_file_names_similar_files(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=re.escape(f"no such file, {tmp_path} has no YAML file\n  do: ")):
        resolve(tmp_path / "demo.yaml")
    for name in ("demo.yaml", "phi3-mini-50m.yaml", "notes.txt"):
        (tmp_path / name).touch()
    with pytest.raises(RecipeError, match=re.escape(f"no such file, wanted one of those in {tmp_path}: demo.yaml\n")):
        resolve(tmp_path / "dmo.yaml")
    with pytest.raises(RecipeError, match=re.escape(": demo.yaml, phi3-mini-50m.yaml\n")):
        resolve(tmp_path / "zzz")
    with pytest.raises(RecipeError, match="Is a directory, wanted a YAML file"):
        resolve(tmp_path)


def test_the_digest_depends_on_values_only(resolve_text: ResolveText) -> None:
    recipe = resolve_text().recipe
    assert re.fullmatch("[0-9a-f]{16}", digest(recipe))
    assert digest(recipe) == digest(resolve_text("seed=7", "pretrain.mix={text: 7e-1, code: 0.30}").recipe)
    digests = {digest(part) for part in (None, recipe, resolve_text("seed=8").recipe, recipe.target, recipe.draft)}
    assert len(digests) == 5
    assert digest(None) == "b785b6ec423c44e1"


def test_the_reference_page_has_every_key_as_users_write_it() -> None:
    page = schema_markdown()
    schema = schema_json()
    parts = [schema, *schema["$defs"].values()]
    assert len(parts) >= 8
    assert sum(line.startswith("| `") for line in page.splitlines()) == sum(len(part["properties"]) for part in parts)
    assert "## `pretrain`, `continue`, `align`" in page
    assert "continue_" not in page
    assert "| `seed` | whole number >= 0 and <= 4,294,967,295 | `7` | Seed of all random generators. |" in page
    assert schema["properties"].keys() == {field.alias or name for name, field in Recipe.model_fields.items()}
