"""What each kind of `draft.init` promises, and the errors for every wrong use of the key."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from fastdraft import init
from fastdraft.config import DraftPart, TargetPart
from fastdraft.config.resolve import resolve
from fastdraft.init.target_embedding import project_rows, read_target_embedding
from fastdraft.models import draft, pretrained
from fastdraft.models.shape import default_budget, derive
from fastdraft.pipeline.stages import key_of, stages_of
from fastdraft.system.errors import RecipeError, ShapeError, TargetError, UserError, VocabularyMismatch

CPU = torch.device("cpu")
SMALL = {"layers": 2, "hidden_size": 12, "heads": 2, "kv_heads": 1, "intermediate_size": 13}


@pytest.fixture(scope="session")
def pair(make_model, make_tokenizer, save_donor):
    """A target with 311 rows; a sibling with 337 rows, 4 layers and the same 307 tokens; a donor with other tokens."""
    sibling = make_model(num_hidden_layers=4, vocab_size=337, seed=8)
    donor = make_model("qwen3", vocab_size=337, seed=9, tie_word_embeddings=False)
    return {
        "target": save_donor(make_model(), make_tokenizer["bpe"](307)),
        "sibling": save_donor(sibling, make_tokenizer["bpe"](307)),
        "donor": save_donor(donor, make_tokenizer["sentencepiece"]()),
    }


@pytest.fixture
def begin(pair, batch, tmp_path):
    """The first weights of a draft; `{target}`, `{sibling}` and `{donor}` in `init` stand for the models of `pair`."""

    def first(seed=7, layers_file="init.json", **part):
        part = DraftPart(**part | {"init": part["init"].format(**pair)})
        whole = TargetPart(path=str(pair["target"]))
        shape = init.shape_of(whole, part)
        model = init.first_weights(
            init.InitInputs(whole, part, shape, seed, CPU, lambda: batch, tmp_path / layers_file)
        )
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert model.num_parameters() == shape.parameters
        assert init.as_built(shape, model).open_config().to_dict() == model.config.to_dict()
        return model.eval()

    return first


def logits(model, batch):
    with torch.no_grad():
        return model(batch.inputs_BT).logits


def opened(path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def test_random_init_is_a_new_draft(begin, pair):
    part = DraftPart(hidden_size=12, layers=2, heads=2)
    new = draft.new(derive(pretrained.open_config(TargetPart(path=str(pair["target"]))), part), 7)
    assert all(
        map(torch.equal, begin(init="random", **part.model_dump(include=SMALL.keys())).parameters(), new.parameters())
    )


def test_target_embedding_differs_from_random_only_in_the_embedding(begin, pair):
    size = {"hidden_size": 12, "layers": 2, "heads": 2}
    embedded, random = (dict(begin(init=kind, **size).named_parameters()) for kind in ("target_embedding", "random"))
    differing = [name for name in random if not torch.equal(embedded[name], random[name])]
    assert differing == ["model.embed_tokens.weight"]
    assert torch.equal(
        embedded[differing[0]], project_rows(read_target_embedding(TargetPart(path=str(pair["target"]))), 12)
    )


def test_without_sizes_prune_keeps_the_whole_model(begin, pair, batch):
    assert torch.equal(logits(begin(init="prune:{sibling}"), batch), logits(opened(pair["sibling"]), batch)[..., :311])


def test_an_untied_donor_keeps_its_output_layer(begin, pair, batch, make_model, save_donor, make_tokenizer):
    folder = save_donor(make_model(tie_word_embeddings=False, seed=6), make_tokenizer["bpe"](307))
    assert torch.equal(logits(begin(init=f"prune:{folder}"), batch), logits(opened(folder), batch))


def test_the_kept_layers_are_those_of_the_layers_file(begin, pair, batch, tmp_path):
    model = begin(init="prune:{sibling}", layers=2)
    stored = json.loads((tmp_path / "init.json").read_text())
    assert stored["init"] == f"prune:{pair['sibling']}"
    sibling = opened(pair["sibling"])
    sibling.model.layers = torch.nn.ModuleList([sibling.model.layers[layer] for layer in stored["layers_kept"]])
    with torch.no_grad():
        expected = sibling(batch.inputs_BT, use_cache=False).logits[..., :311]
    torch.testing.assert_close(logits(model, batch), expected)


def test_stored_layers_are_not_measured_again(begin, tmp_path):
    """A resumed phase uses the layers with which it began."""
    measured = begin(init="prune:{sibling}", layers=2)
    for layers in ([0, 1], [2, 3]):
        (tmp_path / "other.json").write_text(json.dumps({"layers_kept": layers}))
        stored = begin(init="prune:{sibling}", layers=2, layers_file="other.json")
        is_same = json.loads((tmp_path / "init.json").read_text())["layers_kept"] == layers
        assert all(map(torch.equal, measured.parameters(), stored.parameters())) == is_same


def test_layer_types_are_kept_with_their_layers(begin, make_model, make_tokenizer, save_donor, tmp_path):
    layer_types = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
    model = make_model("gemma2", num_hidden_layers=4, layer_types=layer_types, sliding_window=5)
    folder = save_donor(model, make_tokenizer["bpe"](307))
    for layers in ([0, 1], [2, 3], [0, 3]):
        (tmp_path / "kinds.json").write_text(json.dumps({"layers_kept": layers}))
        model = begin(init=f"prune:{folder}", layers=2, layers_file="kinds.json")
        assert model.config.layer_types == [layer_types[layer] for layer in layers]


@pytest.mark.parametrize("kind", ["prune:{sibling}", "transplant:{donor}", "target_embedding"])
def test_init_is_deterministic(kind, begin, tmp_path):
    one, two = (begin(init=kind, layers_file=f"{n}.json", **SMALL) for n in range(2))
    assert all(map(torch.equal, one.parameters(), two.parameters()))


@pytest.mark.parametrize("kind", ["prune:{sibling}", "transplant:{donor}"])
def test_with_a_donor_the_seed_has_no_effect(kind, begin):
    one, two = (begin(init=kind, seed=seed, **SMALL) for seed in (7, 8))
    assert all(map(torch.equal, one.parameters(), two.parameters()))


def test_transplant_to_the_same_tokenizer_keeps_the_model(begin, pair, batch):
    assert torch.equal(
        logits(begin(init="transplant:{sibling}"), batch)[..., :307], logits(opened(pair["sibling"]), batch)[..., :307]
    )


def test_a_transplant_has_the_vocabulary_of_the_target(begin, pair):
    model = begin(init="transplant:{donor}", **SMALL)
    config = pretrained.open_config(TargetPart(path=str(pair["target"])))
    assert model.config.model_type == "qwen3"
    assert (model.config.vocab_size, model.config.eos_token_id) == (config.vocab_size, config.eos_token_id)
    assert model.get_input_embeddings().weight.shape == model.get_output_embeddings().weight.shape == (311, 12)


def test_sizes_that_the_recipe_leaves_out_are_those_of_the_donor(pair):
    part = DraftPart(init=f"transplant:{pair['donor']}", layers=2)
    shape = init.shape_of(TargetPart(path=str(pair["target"])), part)
    sizes = (shape.hidden_size, shape.layers, shape.heads, shape.kv_heads, shape.head_size, shape.intermediate_size)
    assert sizes == (24, 2, 4, 2, 6, 37)
    assert shape.embedding_parameters == 2 * 311 * 24  # the output layer is not tied


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (2, 1), (1, 1)])
def test_without_kv_heads_groups_are_as_large_as_possible(heads, kv_heads, pair):
    part = DraftPart(init=f"prune:{pair['sibling']}", layers=2, heads=heads)
    assert init.shape_of(TargetPart(path=str(pair["target"])), part).kv_heads == kv_heads


def test_a_budget_determines_the_number_of_layers(pair):
    whole = TargetPart(path=str(pair["target"]))
    kind = f"prune:{pair['sibling']}"
    sizes = {n: init.shape_of(whole, DraftPart(init=kind, layers=n)).parameters for n in (1, 2, 3, 4)}
    for layers, size in sizes.items():
        for more in (0, 1):
            part = DraftPart(init=kind, params_millions=(size + more) / 1e6)
            assert init.shape_of(whole, part).layers == layers
    assert init.shape_of(whole, DraftPart(init=kind, params_millions=9)).layers == 4


@pytest.mark.parametrize(
    ("part", "error", "message"),
    [
        (
            {"init": "prune:{sibling}", "layers": 5},
            ShapeError,
            r"draft.layers is 5, and .* has 4: .*\n.*4 at most\n  do: ",
        ),
        ({"init": "prune:{sibling}", "hidden_size": 32}, ShapeError, "draft.hidden_size is 32, and .* has 24"),
        ({"init": "prune:{sibling}", "intermediate_size": 38}, ShapeError, "draft.intermediate_size is 38"),
        (
            {"init": "prune:{sibling}", "head_size": 4},
            ShapeError,
            "draft.head_size is 4, and .* has 6: .*\n.*wanted: 6\n",
        ),
        (
            {"init": "prune:{sibling}", "heads": 3},
            ShapeError,
            "3 attention heads with any number of .*\n.*\n  do: set draft",
        ),
        ({"init": "prune:{sibling}", "kv_heads": 1}, ShapeError, "4 attention heads with 1 key-value heads"),
        (
            {"init": "prune:{sibling}", "params_millions": 0.009},
            ShapeError,
            r"one layer .* of 0.01M parameters(.|\n)*  do: ",
        ),
        (
            {"init": "prune:{sibling}", "params_millions": 0.02, "layers": 4},
            ShapeError,
            "of 0.0.M parameters\n.*0.02M at",
        ),
        (
            {"init": "prune:{donor}"},
            VocabularyMismatch,
            r"of the target's \d+ ids(.|\n)*do: set draft.init=transplant:",
        ),
        ({"init": "prune:./nowhere"}, TargetError, "draft.init: no config.json in nowhere\n  do: "),
        ({"init": "transplant:./nowhere"}, TargetError, "draft.init: no config.json in nowhere\n  do: "),
        (
            {"init": "target_embedding", "hidden_size": 32, "layers": 1},
            ShapeError,
            "32 wide, its target 24(.|\n)*  do: ",
        ),
    ],
)
def test_impossible_inits_are_reported_before_any_work(part, error, message, pair):
    part = DraftPart(**part | {"init": part["init"].format(**pair)})
    with pytest.raises(error, match=message) as caught:
        init.shape_of(TargetPart(path=str(pair["target"])), part)
    assert isinstance(caught.value, UserError)


def without(folder: Path, name: str) -> Path:
    (folder / name).unlink()
    return folder


def test_a_donor_without_weights_or_tokenizer(make_model, make_tokenizer, save_donor, pair):
    whole = TargetPart(path=str(pair["target"]))
    no_weights = without(save_donor(make_model(), make_tokenizer["bpe"](307)), "model.safetensors")
    with pytest.raises(TargetError, match=r"draft.init: .* has no weights\n  wanted: .*safetensors\n  do: "):
        init.shape_of(whole, DraftPart(init=f"prune:{no_weights}"))
    no_tokenizer = without(save_donor(make_model(), make_tokenizer["bpe"](307)), "tokenizer.json")
    with pytest.raises(TargetError, match=r"draft.init: (.|\n)*  do: "):
        init.shape_of(whole, DraftPart(init=f"prune:{no_tokenizer}"))


def test_a_donor_of_an_unknown_family(make_model, make_tokenizer, save_donor, pair):
    folder = save_donor(make_model("bloom", n_layer=2, n_head=4), make_tokenizer["bpe"](307))
    with pytest.raises(ShapeError, match=r"draft.init: .* is a `bloom`(.|\n)*wanted: one of .*llama"):
        init.shape_of(TargetPart(path=str(pair["target"])), DraftPart(init=f"prune:{folder}"))


@pytest.mark.parametrize("kind", ["prun:demo", "prune", "prune:", "transplant: demo", "random:demo", "", "Random"])
def test_a_malformed_init(kind, tiny):
    with pytest.raises(
        RecipeError, match=f"draft.init: found `{kind}`, wanted random, target_embedding, prune:MODEL or"
    ):
        resolve(tiny / "recipe.yaml", [f'draft.init="{kind}"'])


@pytest.mark.parametrize("given", [{}, {"hidden_size": 64}, {"layers": 2}, {"context_tokens": 31}])
@pytest.mark.parametrize("target", ["demo", "pair"])
def test_without_a_budget_the_draft_is_the_recommended_one(pair, target, given):
    """An ordinary target needs no size in the recipe; a size that is given is kept."""
    target = TargetPart(path=str(pair["target"]) if target == "pair" else target)
    config = pretrained.open_config(target)
    budget = default_budget(config)
    shape = init.shape_of(target, DraftPart(init="random", **given))
    assert shape == derive(config, DraftPart(params_millions=budget, **given))
    assert shape.parameters <= budget * 1e6


def test_the_files_of_a_donor_are_part_of_the_stage_key(tiny, pair, tmp_path):
    """Only of the training phases, and only in recipes with this donor."""

    def keys(*overrides):
        recipe = resolve(tiny / "recipe.yaml", [f"target.path={tiny}/target", *overrides]).recipe
        return {stage.name: key_of(stage, recipe, {need: need for need in stage.needs}) for stage in stages_of(recipe)}

    donor = tmp_path / "target"
    kind = f"draft.init=prune:{donor}"
    before, plain = keys(kind), keys()
    config = json.loads((donor / "generation_config.json").read_text())
    (donor / "generation_config.json").write_text(json.dumps(config | {"top_k": 3}))
    changed = {name for name, key in keys(kind).items() if before[name] != key}
    assert changed == {"target", "pretrain", "continue", "align"}  # here the donor is the target
    assert {name for name in before if before[name] != plain[name]} == {"pretrain", "continue", "align"}
    assert keys("draft.init=target_embedding") == keys()


@pytest.mark.slow
def test_the_pipeline_with_a_donor(tiny, fastdraft):
    """The card has the shape of the draft, and the next phase continues with it."""
    keys = ["draft={init: prune:target, layers: 1, hidden_size: 16}", "--until", "continue"]
    result = fastdraft("run", "recipe.yaml", *keys)
    assert result.code == 0, result.err
    assert "init: without layer" in result.err
    run = tiny / "runs" / "tiny"
    cards = [json.loads((run / phase / "card.json").read_text()) for phase in ("pretrain", "continue")]
    sizes = [(card["shape"]["config"]["hidden_size"], card["shape"]["config"]["num_hidden_layers"]) for card in cards]
    assert sizes == [(16, 1)] * 2
    kept = json.loads((run / "pretrain" / "init.json").read_text())["layers_kept"]
    assert len(kept) == 1
    assert not (run / "continue" / "init.json").exists()


def test_a_missing_donor_is_reported_without_a_traceback(tiny, fastdraft):
    result = fastdraft("run", "recipe.yaml", "draft.init=prune:./nowhere")
    assert (result.code, result.out) == (2, "")
    assert "error: draft.init: no config.json in nowhere" in result.err
    assert "  do: " in result.err
    assert "Traceback" not in result.err
