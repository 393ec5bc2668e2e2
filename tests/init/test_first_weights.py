"""A draft before its first step: what each start promises, and every mistake that can be made with the key."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from fastdraft import init
from fastdraft.config import DraftPart, TargetPart
from fastdraft.config.resolve import resolve
from fastdraft.init.target_embedding import projected, target_rows
from fastdraft.models import draft, target
from fastdraft.models.shape import derive
from fastdraft.pipeline.stages import key_of, stages_of
from fastdraft.system.errors import RecipeError, ShapeError, TargetError, UserError, VocabularyMismatch

CPU = torch.device("cpu")
SMALL = {"layers": 2, "hidden_size": 12, "heads": 2, "kv_heads": 1, "intermediate_size": 13}


@pytest.fixture(scope="session")
def pair(make_model, make_tokenizer, save_donor):
    """A target of 311 rows, a sibling of 337 rows and 4 layers with the same 307 tokens, a donor with others."""
    sibling = make_model(num_hidden_layers=4, vocab_size=337, seed=8)
    donor = make_model("qwen3", vocab_size=337, seed=9, tie_word_embeddings=False)
    return {
        "target": save_donor(make_model(), make_tokenizer["bpe"](307)),
        "sibling": save_donor(sibling, make_tokenizer["bpe"](307)),
        "donor": save_donor(donor, make_tokenizer["sentencepiece"]()),
    }


@pytest.fixture
def begin(pair, batch, tmp_path):
    """The first weights of a draft, with the paths of the pair's models put into its start."""

    def first(seed=7, note="init.json", **part):
        part = DraftPart(**part | {"init": part["init"].format(**pair)})
        whole = TargetPart(path=str(pair["target"]))
        shape = init.shape_of(whole, part)
        model = init.first_weights(init.InitInputs(whole, part, shape, seed, CPU, lambda: batch, tmp_path / note))
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


def test_a_random_start_is_what_a_new_draft_is(begin, pair):
    part = DraftPart(hidden_size=12, layers=2, heads=2)
    new = draft.new(derive(target.open_config(TargetPart(path=str(pair["target"]))), part), 7)
    assert all(
        map(torch.equal, begin(init="random", **part.model_dump(include=SMALL.keys())).parameters(), new.parameters())
    )


def test_the_targets_embedding_is_all_that_differs_from_a_random_start(begin, pair):
    size = {"hidden_size": 12, "layers": 2, "heads": 2}
    ours, theirs = (dict(begin(init=way, **size).named_parameters()) for way in ("target_embedding", "random"))
    differ = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert differ == ["model.embed_tokens.weight"]
    assert torch.equal(ours[differ[0]], projected(target_rows(TargetPart(path=str(pair["target"]))), 12))


def test_nothing_asked_is_nothing_lost(begin, pair, batch):
    """The sibling itself, on the rows that the target has."""
    assert torch.equal(logits(begin(init="prune:{sibling}"), batch), logits(opened(pair["sibling"]), batch)[..., :311])


def test_a_model_that_ties_nothing_keeps_an_output_layer_of_its_own(
    begin, pair, batch, make_model, save_donor, make_tokenizer
):
    folder = save_donor(make_model(tie_word_embeddings=False, seed=6), make_tokenizer["bpe"](307))
    assert torch.equal(logits(begin(init=f"prune:{folder}"), batch), logits(opened(folder), batch))


def test_fewer_layers_are_the_layers_of_the_note(begin, pair, batch, tmp_path):
    model = begin(init="prune:{sibling}", layers=2)
    noted = json.loads((tmp_path / "init.json").read_text())
    assert noted["init"] == f"prune:{pair['sibling']}"
    theirs = opened(pair["sibling"])
    theirs.model.layers = torch.nn.ModuleList([theirs.model.layers[layer] for layer in noted["layers_kept"]])
    with torch.no_grad():
        wanted = theirs(batch.inputs_BT, use_cache=False).logits[..., :311]
    torch.testing.assert_close(logits(model, batch), wanted)


def test_what_is_noted_is_not_measured_again(begin, tmp_path):
    """A phase that was stopped goes on with the layers that it began with."""
    chosen = begin(init="prune:{sibling}", layers=2)
    for layers in ([0, 1], [2, 3]):
        (tmp_path / "other.json").write_text(json.dumps({"layers_kept": layers}))
        other = begin(init="prune:{sibling}", layers=2, note="other.json")
        same = json.loads((tmp_path / "init.json").read_text())["layers_kept"] == layers
        assert all(map(torch.equal, chosen.parameters(), other.parameters())) == same


def test_a_kind_of_layer_stays_with_its_layer(begin, make_model, make_tokenizer, save_donor, tmp_path):
    kinds = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
    model = make_model("gemma2", num_hidden_layers=4, layer_types=kinds, sliding_window=5)
    folder = save_donor(model, make_tokenizer["bpe"](307))
    for layers in ([0, 1], [2, 3], [0, 3]):
        (tmp_path / "kinds.json").write_text(json.dumps({"layers_kept": layers}))
        made = begin(init=f"prune:{folder}", layers=2, note="kinds.json")
        assert made.config.layer_types == [kinds[layer] for layer in layers]


@pytest.mark.parametrize("way", ["prune:{sibling}", "transplant:{donor}", "target_embedding"])
def test_the_same_start_twice_is_the_same_start(way, begin, tmp_path):
    one, two = (begin(init=way, note=f"{n}.json", **SMALL) for n in range(2))
    assert all(map(torch.equal, one.parameters(), two.parameters()))


@pytest.mark.parametrize("way", ["prune:{sibling}", "transplant:{donor}"])
def test_a_donor_leaves_nothing_to_the_seed(way, begin):
    one, two = (begin(init=way, seed=seed, **SMALL) for seed in (7, 8))
    assert all(map(torch.equal, one.parameters(), two.parameters()))


def test_transplanted_onto_its_own_tokenizer_it_is_itself(begin, pair, batch):
    assert torch.equal(
        logits(begin(init="transplant:{sibling}"), batch)[..., :307], logits(opened(pair["sibling"]), batch)[..., :307]
    )


def test_a_transplant_speaks_the_targets_tokens(begin, pair):
    model = begin(init="transplant:{donor}", **SMALL)
    config = target.open_config(TargetPart(path=str(pair["target"])))
    assert model.config.model_type == "qwen3"
    assert (model.config.vocab_size, model.config.eos_token_id) == (config.vocab_size, config.eos_token_id)
    assert model.get_input_embeddings().weight.shape == model.get_output_embeddings().weight.shape == (311, 12)


def test_what_the_recipe_leaves_out_is_the_donors(pair):
    part = DraftPart(init=f"transplant:{pair['donor']}", layers=2)
    shape = init.shape_of(TargetPart(path=str(pair["target"])), part)
    sizes = (shape.hidden_size, shape.layers, shape.heads, shape.kv_heads, shape.head_size, shape.intermediate_size)
    assert sizes == (24, 2, 4, 2, 6, 37)
    assert shape.embedding_parameters == 2 * 311 * 24  # it ties nothing


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (2, 1), (1, 1)])
def test_heads_alone_leave_the_largest_groups(heads, kv_heads, pair):
    part = DraftPart(init=f"prune:{pair['sibling']}", layers=2, heads=heads)
    assert init.shape_of(TargetPart(path=str(pair["target"])), part).kv_heads == kv_heads


def test_a_budget_reports_how_many_layers_stay(pair):
    whole = TargetPart(path=str(pair["target"]))
    way = f"prune:{pair['sibling']}"
    sizes = {n: init.shape_of(whole, DraftPart(init=way, layers=n)).parameters for n in (1, 2, 3, 4)}
    for layers, size in sizes.items():
        for more in (0, 1):
            part = DraftPart(init=way, params_millions=(size + more) / 1e6)
            assert init.shape_of(whole, part).layers == layers
    assert init.shape_of(whole, DraftPart(init=way, params_millions=9)).layers == 4


@pytest.mark.parametrize(
    ("part", "error", "said"),
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
        ({"init": "prune:{sibling}", "params_millions": 0.009}, ShapeError, r"one layer .* already(.|\n)*do: raise"),
        (
            {"init": "prune:{sibling}", "params_millions": 0.02, "layers": 4},
            ShapeError,
            "of 0.0.M parameters\n.*0.02M at",
        ),
        ({"init": "prune:{donor}"}, VocabularyMismatch, r"means something else(.|\n)*do: set draft.init=transplant:"),
        ({"init": "prune:./nowhere"}, TargetError, "draft.init: no config.json in nowhere\n  do: "),
        ({"init": "transplant:./nowhere"}, TargetError, "draft.init: no config.json in nowhere\n  do: "),
        (
            {"init": "target_embedding", "hidden_size": 32, "layers": 1},
            ShapeError,
            "32 wide, its target 24(.|\n)*  do: ",
        ),
    ],
)
def test_what_cannot_be_is_reported_before_any_work(part, error, said, pair):
    part = DraftPart(**part | {"init": part["init"].format(**pair)})
    with pytest.raises(error, match=said) as caught:
        init.shape_of(TargetPart(path=str(pair["target"])), part)
    assert isinstance(caught.value, UserError)


def without(folder: Path, name: str) -> Path:
    (folder / name).unlink()
    return folder


def test_a_donor_without_weights_or_tokenizer(make_model, make_tokenizer, save_donor, pair):
    whole = TargetPart(path=str(pair["target"]))
    bare = without(save_donor(make_model(), make_tokenizer["bpe"](307)), "model.safetensors")
    with pytest.raises(TargetError, match=r"draft.init: .* has no weights\n  wanted: .*safetensors\n  do: "):
        init.shape_of(whole, DraftPart(init=f"prune:{bare}"))
    mute = without(save_donor(make_model(), make_tokenizer["bpe"](307)), "tokenizer.json")
    with pytest.raises(TargetError, match=r"draft.init: (.|\n)*  do: "):
        init.shape_of(whole, DraftPart(init=f"prune:{mute}"))


def test_a_donor_of_an_unknown_family(make_model, make_tokenizer, save_donor, pair):
    folder = save_donor(make_model("bloom", n_layer=2, n_head=4), make_tokenizer["bpe"](307))
    with pytest.raises(ShapeError, match=r"draft.init: .* is a `bloom`, of which no rule(.|\n)*wanted: one of .*llama"):
        init.shape_of(TargetPart(path=str(pair["target"])), DraftPart(init=f"prune:{folder}"))


@pytest.mark.parametrize("way", ["prun:demo", "prune", "prune:", "transplant: demo", "random:demo", "", "Random"])
def test_a_start_that_is_none(way, tiny):
    with pytest.raises(
        RecipeError, match=f"draft.init: found `{way}`, wanted random, target_embedding, prune:MODEL or"
    ):
        resolve(tiny / "recipe.yaml", [f'draft.init="{way}"'])


def test_a_donor_needs_no_size_and_others_do():
    assert DraftPart(init="prune:demo").layers is None
    for way in ("random", "target_embedding"):
        with pytest.raises(ValueError, match="give params_millions, or both hidden_size and layers"):
            DraftPart(init=way)


def test_a_donors_files_are_part_of_the_key(tiny, pair, tmp_path):
    """Of the phases alone, and only of recipes that start from it."""

    def keys(*overrides):
        recipe = resolve(tiny / "recipe.yaml", [f"target.path={tiny}/target", *overrides]).recipe
        return {stage.name: key_of(stage, recipe, {need: need for need in stage.needs}) for stage in stages_of(recipe)}

    donor = tmp_path / "target"
    way = f"draft.init=prune:{donor}"
    before, plain = keys(way), keys()
    config = json.loads((donor / "generation_config.json").read_text())
    (donor / "generation_config.json").write_text(json.dumps(config | {"top_k": 3}))
    changed = {name for name, key in keys(way).items() if before[name] != key}
    assert changed == {"target", "pretrain", "continue", "align"}  # the target is the donor here
    assert {name for name in before if before[name] != plain[name]} == {"pretrain", "continue", "align"}
    assert keys("draft.init=target_embedding") == keys()


@pytest.mark.slow
def test_the_pipeline_from_a_donor(tiny, fastdraft):
    """The card says what shape came of it, and the next phase goes on from it."""
    keys = ["draft={init: prune:target, layers: 1, hidden_size: 16}", "--until", "continue"]
    ended = fastdraft("run", "recipe.yaml", *keys)
    assert ended.code == 0, ended.err
    assert "init: without layer" in ended.err
    run = tiny / "runs" / "tiny"
    cards = [json.loads((run / phase / "card.json").read_text()) for phase in ("pretrain", "continue")]
    sizes = [(card["shape"]["config"]["hidden_size"], card["shape"]["config"]["num_hidden_layers"]) for card in cards]
    assert sizes == [(16, 1)] * 2
    kept = json.loads((run / "pretrain" / "init.json").read_text())["layers_kept"]
    assert len(kept) == 1
    assert not (run / "continue" / "init.json").exists()


def test_a_donor_that_is_not_there_is_reported_plainly(tiny, fastdraft):
    ended = fastdraft("run", "recipe.yaml", "draft.init=prune:./nowhere")
    assert (ended.code, ended.out) == (2, "")
    assert "error: draft.init: no config.json in nowhere" in ended.err
    assert "  do: " in ended.err
    assert "Traceback" not in ended.err
