"""The command: 0 where every rule holds, 1 where one does not, 2 for a mistake; a table, or JSON."""

import json
import re
import shutil

import pytest

from .conftest import ROWS, edit
from .test_repair import another_tokenizer


def refused(ended, *said):
    """A user's mistake: exit code 2, nothing on stdout, what to do, no traceback."""
    assert (ended.code, ended.out) == (2, ""), ended.err
    assert "Traceback" not in ended.err
    assert re.search(r"^  do: \S", ended.err, re.MULTILINE), ended.err
    for text in said:
        assert text in ended.err


def test_a_pair_that_fits(pair, fastdraft):
    ended = fastdraft("check", "target", "draft")
    assert ended.code == 0, ended.err
    assert "Does draft fit target?" in ended.out
    assert "it fits: every rule holds" in ended.out
    assert len(re.findall(r"│ yes ", ended.out)) >= 14
    assert "\x1b" not in ended.out


def test_one_that_does_not_fit(pair, make_model, fastdraft):
    make_model(pair[1], 16, vocab_size=ROWS + 3)
    ended = fastdraft("check", "target", "draft")
    assert ended.code == 1, ended.err
    assert re.search(r"vLLM, draft_model +│ \S+, 2026 +│ NO +│ vocab_size: target 317, draft 320", ended.out)
    summary = "it does not fit: 6 of 14 rules fail\n  rows: trim 320 rows to 317\n"
    assert f"{summary}  do: fastdraft check target draft --repair" in ended.out
    assert not (pair[1].parent / "draft-repaired").exists()


def test_everything_in_json(pair, make_model, fastdraft):
    make_model(pair[1], 16, vocab_size=ROWS + 3)
    ended = fastdraft("check", "target", "draft", "--json")
    found = json.loads(ended.out)
    assert (ended.code, found["holds"], found["obstacle"], found["repaired"]) == (1, False, None, None)
    assert found["draft"]["output_rows"] == ROWS + 3
    assert found["repairs"] == {"rows": "trim 320 rows to 317"}
    assert len(found["findings"]) >= 14
    assert all(set(line) == {"rule", "version", "source", "verdict", "why", "repair"} for line in found["findings"])
    json_fits = fastdraft("check", "target", "target", "--json")
    assert (json_fits.code, json.loads(json_fits.out)["holds"]) == (0, True)


def test_a_repair(pair, make_model, fastdraft):
    """Beside the draft, checked again; a second one finds its place taken."""
    make_model(pair[1], 16, vocab_size=ROWS + 3)
    edit(pair[1] / "config.json", max_position_embeddings=61)
    ended = fastdraft("check", "target", "draft", "--repair")
    assert ended.code == 0, ended.err
    folder = pair[1].parent / "draft-repaired"
    assert "model.embed_tokens.weight: 320 to 317 rows" in ended.out
    assert "it does not fit" in ended.out
    assert ended.out.rstrip().endswith("it fits: every rule holds")
    assert fastdraft("check", "target", folder.name).code == 0
    refused(fastdraft("check", "target", "draft", "--repair"), f"{folder} exists already", "--out")


def test_a_repair_in_json_and_elsewhere(pair, fastdraft):
    edit(pair[1] / "config.json", bos_token_id=9)
    ended = fastdraft("check", "target", "draft", "--repair", "--out", "new/repaired", "--json")
    found = json.loads(ended.out)
    assert (ended.code, found["holds"]) == (0, False)
    assert found["repaired"]["report"]["holds"]
    assert found["repaired"]["folder"] == "new/repaired"
    assert "config.json: bos_token_id 9 to 1" in found["repaired"]["done"]
    assert (pair[1].parent / "new" / "repaired" / "model.safetensors").is_file()


def test_tokens_that_look_like_markup(pair, fastdraft):
    path = pair[1] / "tokenizer.json"
    content = json.loads(path.read_text())
    content["added_tokens"][-1]["content"] = "[/INST]"
    path.write_text(json.dumps(content))
    ended = fastdraft("check", "target", "draft")
    assert (ended.code, "draft '[/INST]'" in ended.out) == (1, True), ended.err


def test_nothing_to_repair(pair, fastdraft):
    ended = fastdraft("check", "target", "draft", "--repair")
    assert (ended.code, (pair[1].parent / "draft-repaired").exists()) == (0, False)


def test_what_repair_cannot_fix(pair, fastdraft):
    another_tokenizer(pair[1])
    ended = fastdraft("check", "target", "draft", "--repair")
    assert ended.code == 1
    assert "no repair: in the draft's tokenizer" in ended.out
    assert "draft.init=transplant:draft" in ended.out
    assert not (pair[1].parent / "draft-repaired").exists()


def test_what_repair_leaves(pair, fastdraft):
    """The same files, read by transformers as those of another family: by that family's own rules."""
    config = json.loads((pair[0] / "tokenizer_config.json").read_text())
    del config["tokenizer_class"]
    (pair[0] / "tokenizer_config.json").write_text(json.dumps(config))
    edit(pair[0] / "config.json", model_type="mistral", architectures=["MistralForCausalLM"])
    edit(pair[1] / "config.json", model_type="qwen2", architectures=["Qwen2ForCausalLM"], bos_token_id=9)
    ended = fastdraft("check", "target", "draft", "--repair")
    assert ended.code == 1, ended.err
    assert "unlike: normalizer, pre_tokenizer" in ended.out
    assert "what still fails is beyond repair; do: train" in ended.out
    assert (pair[1].parent / "draft-repaired").is_dir()


@pytest.mark.slow
def test_a_full_disk(pair, make_model, fastdraft):
    make_model(pair[1], 16, vocab_size=ROWS + 3)
    ended = fastdraft("check", "target", "draft", "--repair", file_bytes=9000)
    assert "no space left while writing draft-repaired" in ended.err.replace(f"{pair[1].parent}/", "")
    assert ended.code == 2
    assert [path.name for path in pair[1].parent.glob("draft*")] == ["draft"]
    assert fastdraft("check", "target", "draft", "--repair").code == 0


def test_mistakes(pair, fastdraft):
    refused(fastdraft("check", "target", "./gone"), "no config.json in gone")
    refused(fastdraft("check", "./gone", "draft"), "no config.json in gone")
    refused(fastdraft("check", "target", "draft", "--out", "new"), "--out new", "--repair")
    (pair[1].parent / "new").mkdir()
    refused(fastdraft("check", "target", "draft", "--repair", "--out", "new"), "new exists already")
    (pair[1] / "model.safetensors").rename(pair[1] / "pytorch_model.bin")
    refused(fastdraft("check", "target", "draft"), "pickled weights only")
    (pair[1] / "pytorch_model.bin").unlink()
    edit(pair[1] / "config.json", bos_token_id=9)
    ended = fastdraft("check", "target", "draft", "--repair")
    assert (ended.code, "has no weights to repair" in ended.err) == (2, True)
    shutil.rmtree(pair[0])
    refused(fastdraft("check", "target", "draft"), "target")
