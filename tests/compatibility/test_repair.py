"""A repaired draft keeps every rule, says the same on the rows that both have, and is made whole or not at all."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from fastdraft.compatibility.repair import default_folder, repair, with_rows
from fastdraft.compatibility.report import check_pair
from fastdraft.models.model_files import read
from fastdraft.models.pretrained import TOKENIZER_FILES
from fastdraft.models.weight_files import INDEX
from fastdraft.system.errors import RepairError

from .conftest import ROWS, TOKENS, edit, held

PROMPT = torch.tensor([[1, 5, 17, 301, 97, 2]])


def repaired(target: Path, draft: Path, out: Path) -> list[str]:
    """Repair, and hold the result against every rule."""
    done = repair(read(str(target)), read(str(draft)), out)
    report = check_pair(read(str(target)), read(str(out)), repaired=True)
    assert [found for found in report.findings if found.verdict != "holds"] == []
    return done


# Logits are compared bit for bit, and their rounding must not hang on the number of rows.
pytestmark = pytest.mark.usefixtures("one_thread")


def logits(folder: Path) -> torch.Tensor:
    """In the precision that the weights are stored in."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()(PROMPT).logits


FAMILIES = {
    "tied": {"tied": True},
    "untied": {"tied": False},
    "tied, bfloat16": {"tied": True, "dtype": torch.bfloat16},
    "untied, bfloat16": {"tied": False, "dtype": torch.bfloat16},
}


def of_family(folder: Path, make_model, rows: int, tied: bool, dtype: torch.dtype = torch.float32) -> None:
    make_model(folder, 16, tied, vocab_size=rows)
    AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).save_pretrained(folder)


@pytest.mark.parametrize("rows", [ROWS - 3, ROWS - 8, ROWS + 131])
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
def test_rows_padded_or_trimmed(pair, make_model, tmp_path, family, rows):
    """Bit for bit the same logits on shared rows; a padded id is never the best."""
    mine, theirs = pair
    of_family(theirs, make_model, rows, **family)
    done = repaired(mine, theirs, tmp_path / "out")
    before, after = logits(theirs), logits(tmp_path / "out")
    assert (before.shape[-1], after.shape[-1]) == (rows, ROWS)
    shared = min(rows, ROWS)
    assert torch.equal(before[..., :shared], after[..., :shared])
    assert after.dtype == family.get("dtype", torch.float32)
    assert int(after.argmax(-1).max()) < rows
    assert len([line for line in done if "rows" in line]) == (1 if family["tied"] else 2)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert (opened.get_output_embeddings().weight is opened.get_input_embeddings().weight) is family["tied"]


def test_an_output_layer_with_a_bias(pair, tmp_path):
    """Every tensor with a row for each id grows: Phi's output layer adds a bias."""
    mine, theirs = pair
    config = AutoConfig.for_model(
        "phi",
        vocab_size=ROWS - 5,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=97,
        bos_token_id=1,
        eos_token_id=0,
        pad_token_id=2,
    )
    model = AutoModelForCausalLM.from_config(config)
    torch.nn.init.normal_(model.lm_head.bias, -50.0)
    model.save_pretrained(theirs)
    repaired(mine, theirs, tmp_path / "out")
    before, after = logits(theirs), logits(tmp_path / "out")
    assert torch.equal(before, after[..., : ROWS - 5])
    assert int(after.argmax(-1).max()) < ROWS - 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shift", [-60.0, 0.0, 60.0])
def test_a_padded_id_never_wins(dtype, shift):
    """Not where all logits are negative either: there a row of zeros would win."""
    generator = torch.Generator().manual_seed(11)
    weight = torch.randn(211, 31, generator=generator)
    states = torch.randn(997, 31, generator=generator)
    weight[:, 0], states[:, 0] = shift, 1.0
    padded = with_rows(weight.to(dtype), 307, 199)
    scores = states @ padded.float().T
    assert int(scores.argmax(-1).max()) < 211
    assert torch.equal(padded[:211], weight.to(dtype))
    assert len(padded[211:].unique(dim=0)) == 1
    zeros = torch.cat([weight, torch.zeros(96, 31)])
    assert (int((states @ zeros.T).argmax(-1).max()) >= 211) is (shift < 0)


def test_quantised_rows_are_refused():
    with pytest.raises(RepairError, match="rows of torch.int8 cannot be averaged\n  do: "):
        with_rows(torch.zeros(7, 3, dtype=torch.int8), 11, 7)


def test_many_files_of_weights(pair, tmp_path):
    """Files without a row for each id are copied as they are, and the index counts what is there."""
    mine, theirs = pair
    model = AutoModelForCausalLM.from_pretrained(theirs)
    model.resize_token_embeddings(ROWS - 4)
    (theirs / "model.safetensors").unlink()
    model.save_pretrained(theirs, max_shard_size="9KB")
    files = sorted(path.name for path in theirs.glob("*.safetensors"))
    assert len(files) >= 3
    repaired(mine, theirs, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").glob("*.safetensors")) == files
    same = [name for name in files if (theirs / name).read_bytes() == (tmp_path / "out" / name).read_bytes()]
    assert len(same) == len(files) - 1
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    stored = [tensor for name in files for tensor in load_file(tmp_path / "out" / name).values()]
    assert index["metadata"]["total_size"] == sum(tensor.numel() * tensor.element_size() for tensor in stored)
    assert torch.equal(logits(theirs), logits(tmp_path / "out")[..., : ROWS - 4])


def test_tokenizer_files_byte_for_byte(pair, tmp_path):
    """A template that was changed, a file that the target has not, no bos before a text: all as the target has it."""
    mine, theirs = pair
    (theirs / "chat_template.jinja").write_text("{{ messages }}")
    (theirs / "special_tokens_map.json").write_text('{"eos_token": "<end>"}')
    content = json.loads((theirs / "tokenizer.json").read_text())
    (theirs / "tokenizer.json").write_text(json.dumps(content | {"post_processor": None}))
    assert any("byte for byte" in line for line in repaired(mine, theirs, tmp_path / "out"))
    for name in TOKENIZER_FILES:
        assert (mine / name).is_file() == (tmp_path / "out" / name).is_file()
        assert not (mine / name).is_file() or (mine / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    assert torch.equal(logits(theirs), logits(tmp_path / "out"))


def test_special_ids(pair, tmp_path):
    """As the target's config.json has them, an id or a list; what else a draft's files say stays."""
    mine, theirs = pair
    edit(mine / "config.json", eos_token_id=[0, 5])
    edit(mine / "generation_config.json", eos_token_id=[0, 5, 7])
    edit(theirs / "config.json", bos_token_id=9, pad_token_id=None, note="kept")
    edit(theirs / "generation_config.json", eos_token_id=3, pad_token_id=4, assistant_confidence_threshold=0.0)
    done = repaired(mine, theirs, tmp_path / "out")
    assert "config.json: bos_token_id 9 to 1" in done
    made = AutoConfig.from_pretrained(tmp_path / "out")
    assert (made.bos_token_id, made.eos_token_id, made.pad_token_id, made.note) == (1, [0, 5], 2, "kept")
    generation = GenerationConfig.from_pretrained(tmp_path / "out")
    found = (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id)
    assert found == (1, [0, 5, 7], 2)
    assert generation.assistant_confidence_threshold == 0.0
    assert torch.equal(logits(theirs), logits(tmp_path / "out"))


def test_a_draft_that_names_nothing_to_generate_with(pair, tmp_path):
    mine, theirs = pair
    (theirs / "generation_config.json").unlink()
    edit(theirs / "config.json", eos_token_id=4)
    repaired(mine, theirs, tmp_path / "out")
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == 0


def test_config_json_alone_is_wrong(pair, tmp_path):
    """Its weights are then copied, not rewritten."""
    edit(pair[1] / "config.json", vocab_size=ROWS + 7)
    assert "config.json: vocab_size 324 to 317" in repaired(*pair, tmp_path / "out")
    assert (pair[1] / "model.safetensors").read_bytes() == (tmp_path / "out" / "model.safetensors").read_bytes()


def test_weights_under_the_names_of_a_model_without_a_head(pair, tmp_path):
    """Some were saved from inside a larger model, or without their head's prefix."""
    mine, theirs = pair
    weights = load_file(theirs / "model.safetensors")
    bare = {name.removeprefix("model."): weight for name, weight in weights.items()}
    bare["embed_tokens.weight"] = bare["embed_tokens.weight"][: ROWS - 2].clone()
    save_file(bare, theirs / "model.safetensors", {"format": "pt"})
    edit(theirs / "config.json", vocab_size=ROWS - 2)
    assert f"embed_tokens.weight: {ROWS - 2} to {ROWS} rows" in repaired(mine, theirs, tmp_path / "out")


def test_what_else_lies_there(pair, tmp_path):
    """Model card, licence and code come along; pickles and files made of the draft as it was do not."""
    names = {
        "README.md",
        "LICENSE",
        "modeling_own.py",
        "pytorch_model.bin",
        "draft-q8_0.gguf",
        "consolidated.safetensors",
    }
    for name in names:
        (pair[1] / name).write_bytes(b"x")
    repaired(*pair, tmp_path / "out")
    assert {name for name in names if (tmp_path / "out" / name).exists()} == {"README.md", "LICENSE", "modeling_own.py"}


def test_tokens_that_the_draft_has_never_seen(pair, tmp_path):
    """A name more in the target's tokenizer: the row is there, and it is said that nobody trained it."""
    mine, theirs = pair
    content = json.loads((mine / "tokenizer.json").read_text())
    content["added_tokens"].append({**content["added_tokens"][-1], "content": "<late>", "id": TOKENS + 1})
    (mine / "tokenizer.json").write_text(json.dumps(content))
    done = repaired(mine, theirs, tmp_path / "out")
    assert f"1 tokens are new to the draft, first {TOKENS + 1}: it will hardly propose them" in done


# What cannot be fixed.


def another_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    vocab = content["model"]["vocab"]
    one, other = (next(token for token, i in vocab.items() if i == number) for number in (41, 43))
    vocab[one], vocab[other] = 43, 41
    path.write_text(json.dumps(content))


def test_another_tokenizer_is_not_papered_over(pair):
    """Two ids swapped: rows, ids and lengths are equal, and every engine but two is content."""
    another_tokenizer(pair[1])
    report = held(*pair)
    assert report.obstacle
    assert report.obstacle.startswith("no repair: in the draft's tokenizer 2 ids are other text; 41: target ")
    assert f"\n  do: train a draft for this target; draft.init=transplant:{pair[1]} keeps" in report.obstacle
    assert {found.repair for found in report.findings} == {()}
    assert report.repairs == {}


def test_tokens_without_a_row(pair, make_model):
    """Trimming stops at the draft's own last token."""
    mine, theirs = pair
    content = json.loads((theirs / "tokenizer.json").read_text())
    last = content["added_tokens"][-1]
    content["added_tokens"] += [{**last, "content": f"<{n}>", "id": n} for n in range(TOKENS + 1, ROWS + 2)]
    (theirs / "tokenizer.json").write_text(json.dumps(content))
    make_model(theirs, 16, vocab_size=ROWS + 2)
    obstacle = held(mine, theirs).obstacle
    assert obstacle
    assert obstacle.startswith(f"no repair: {ROWS} rows are too few for 2 of the draft's tokens, first id {ROWS}")


def test_nothing_is_replaced(pair, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(RepairError, match=f"{tmp_path}/out exists already\n  wanted: .*\n  do: remove it, or name"):
        repair(*map(read, map(str, pair)), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_draft_without_weights(pair, tmp_path):
    (pair[1] / "model.safetensors").unlink()
    with pytest.raises(RepairError, match=f"{pair[1]} has no weights to repair\n  wanted: .*\n  do: give the folder"):
        repair(*map(read, map(str, pair)), tmp_path / "out")


def test_a_place_that_cannot_be(pair, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        RepairError, match=f"{tmp_path}/file/out cannot be written: .*\n  do: choose another folder"
    ) as e:
        repair(*map(read, map(str, pair)), tmp_path / "file" / "out")
    assert e.value.exit_code == 2


def test_the_draft_itself_stays_as_it_was(pair, make_model, tmp_path):
    make_model(pair[1], 16, vocab_size=ROWS - 3)
    before = {path.name: path.read_bytes() for path in pair[1].iterdir()}
    repaired(*pair, tmp_path / "out")
    assert before == {path.name: path.read_bytes() for path in pair[1].iterdir()}


def test_where_it_goes(pair, tmp_path, monkeypatch):
    """Next to a local folder, also from within it."""
    shutil.copytree(pair[1], tmp_path / "models" / "mine")
    monkeypatch.chdir(tmp_path)
    assert default_folder(read("models/mine")) == tmp_path / "models" / "mine-repaired"
    monkeypatch.chdir(tmp_path / "models" / "mine")
    assert default_folder(read(".")) == tmp_path / "models" / "mine-repaired"
