"""A model is read without its weights; an error names the file that is missing or damaged."""

import resource
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fastdraft.models.model_files import read
from fastdraft.models.pretrained import TOKENIZER_FILES
from fastdraft.system.errors import TargetError, UserError

from .conftest import ROWS, TOKENS, edit, held


def test_reads_sizes_and_special_ids(fitting):
    files = read(fitting[0])
    assert (files.vocab_size, files.embedding_rows, files.output_rows, files.rows_from) == (ROWS, ROWS, ROWS, "weights")
    assert len(files.id_bytes) == TOKENS + 1
    assert (files.role_id("bos"), files.role_id("eos"), files.role_id("pad"), files.eos_ids) == (1, 0, 2, {0})
    assert files.added_ids == {0, 1, 2, TOKENS}
    assert files.context_tokens() == 97


def test_without_weights_rows_are_from_config_json(pair):
    for folder in pair:
        (folder / "model.safetensors").unlink()
    report = held(*pair)
    assert (report.target.rows_from, report.draft.rows_from) == ("config.json", "config.json")
    assert report.holds
    edit(pair[1] / "config.json", vocab_size=ROWS + 1)
    found = {finding.rule: finding for finding in held(*pair).findings}
    assert found["rows = padded vocabulary"].verdict == "fails"


def test_weights_are_not_loaded(pair):
    """Two gigabytes of weights take milliseconds and no memory."""
    file = pair[0] / "model.safetensors"
    save_file({"model.embed_tokens.weight": torch.zeros(ROWS, 3)}, file)
    head = file.read_bytes()[8:].split(b"}}")[0].decode() + "}}"
    wide = 2**31 // (4 * ROWS)
    head = head.replace(f"[{ROWS},3]", f"[{ROWS},{wide}]").replace(str(ROWS * 3 * 4), str(ROWS * wide * 4))
    with file.open("wb") as handle:
        handle.write(len(head).to_bytes(8, "little") + head.encode())
        handle.truncate(8 + len(head) + ROWS * wide * 4)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert read(pair[0]).shapes == {"model.embed_tokens.weight": (ROWS, wide)}
    assert read(pair[0]).output_rows == ROWS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20


def without_tokenizer(folder: Path) -> None:
    for name in TOKENIZER_FILES:
        (folder / name).unlink(missing_ok=True)


def with_a_tokenizer_alone(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name not in TOKENIZER_FILES:
            path.unlink()


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])


def no_safetensors(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"x" * 99)


def a_file_less(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    index = '{"weight_map": {"model.norm.weight": "model-1.safetensors", "lm_head.weight": "model-2.safetensors"}}'
    (folder / "model.safetensors.index.json").write_text(index)


def quantised(folder: Path) -> None:
    save_file({"model.embed_tokens.qweight": torch.zeros(ROWS, 3)}, folder / "model.safetensors")


def broken_generation(folder: Path) -> None:
    (folder / "generation_config.json").write_text("{")


UNREADABLE = {
    "no folder": (shutil.rmtree, "no config.json in {folder}"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "no config.json in {folder}"),
    "a tokenizer alone": (with_a_tokenizer_alone, "no config.json in {folder}"),
    "no tokenizer": (without_tokenizer, "tokenizer.*{folder}"),
    "pickled weights": (pickled, "{folder} has pickled weights only"),
    "weights cut short": (cut_short, "the header of {folder}/model.safetensors cannot be read"),
    "no safetensors": (no_safetensors, "the header of {folder}/model.safetensors cannot be read"),
    "a file of weights less": (a_file_less, "{folder} lacks 1 of the 2 weight files .*first model-2"),
    "quantised": (quantised, "the weights in {folder} have no model.embed_tokens.weight"),
    "generation config": (broken_generation, "{folder}/generation_config.json cannot be read"),
}


@pytest.mark.parametrize("index", [0, 1], ids=["target", "draft"])
@pytest.mark.parametrize(("damage", "message"), UNREADABLE.values(), ids=UNREADABLE.keys())
def test_what_cannot_be_read_is_named(pair, index, damage, message):
    damage(pair[index])
    with pytest.raises(UserError, match=f"(?s){message.format(folder=pair[index])}.*\n  do: ") as caught:
        held(*pair)
    assert caught.value.exit_code == 2


def test_a_family_that_transformers_does_not_know(pair):
    """The names of its weights are unknown, so the rows are those of config.json."""
    edit(pair[0] / "config.json", model_type="riddle")
    report = held(*pair)
    assert (report.target.family, report.target.rows_from, report.holds) == ("riddle", "config.json", True)


def test_weights_on_the_hub_are_downloaded_only_if_needed(monkeypatch, fitting):
    """A target's configuration and tokenizer are enough; a draft's weights are downloaded too."""
    calls = []

    def snapshot_download(name, revision, allow_patterns):
        calls.append(allow_patterns)
        return fitting[0]

    monkeypatch.setattr("fastdraft.models.hub.snapshot_download", snapshot_download)
    read("somebody/model", weights=False)
    assert calls
    assert not any("*.safetensors" in patterns for patterns in calls)
    read("somebody/model")
    assert any("*.safetensors" in patterns for patterns in calls)


def test_a_model_that_cannot_be_downloaded(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(TargetError, match=r"(?s)nobody/nothing-at-all is not a local folder, and the hub .*\n  do: "):
        read("nobody/nothing-at-all", weights=False)


def test_a_tokenizer_that_cannot_encode(tmp_path, fitting):
    """A word-level vocabulary whose unknown token is not in it."""
    folder = tmp_path / "target"
    shutil.copytree(fitting[0], folder)
    words = {"seven": 0, "wolves": 1, "walk": 2}
    edit(folder / "tokenizer.json", model={"type": "WordLevel", "vocab": words, "unk_token": "<nowhere>"})
    with pytest.raises(TargetError, match=f"(?s)tokenizer .*{folder}: .*\n  do: copy all"):
        read(folder)
