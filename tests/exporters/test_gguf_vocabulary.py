"""Tokenizers as llama.cpp knows them: named by their definition, or refused with the reason."""

import json
from pathlib import Path

import gguf
import pytest
from tokenizers import Tokenizer

from fastdraft.config import TargetPart
from fastdraft.exporters.gguf_vocabulary import read_vocabulary
from fastdraft.models.gguf_pre_tokenizers import PRE_TOKENIZERS
from fastdraft.models.pretrained import folder_of
from fastdraft.system.errors import ExportError

SHARED = Path(__file__).parents[3] / "shared" / "data"
DEMO = folder_of(TargetPart(path="demo"))
LLAMA3 = PRE_TOKENIZERS["llama-bpe"].steps[0]


def split(pattern: str, **more: object) -> dict:
    cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False} | more
    return {"type": "Sequence", "pretokenizers": [cut, byte_level(False)]}


def byte_level(words: bool, prefix: bool = False) -> dict:
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": words}


def changed(folder: Path, to: Path, **parts: object) -> Path:
    """A folder with other parts in its tokenizer.json; `model` is merged."""
    to.mkdir(parents=True)
    for file in folder.iterdir():
        if file.suffix == ".json":
            (to / file.name).write_bytes(file.read_bytes())
    whole = json.loads((to / "tokenizer.json").read_text())
    parts["model"] = whole["model"] | dict(parts.get("model", {}))
    (to / "tokenizer.json").write_text(json.dumps(whole | parts))
    return to


def test_the_packaged_target_is_cut_as_qwen2():
    found = read_vocabulary(DEMO, 8197)
    assert (found.model, found.pre, found.adds_bos, found.adds_eos) == ("gpt2", "qwen2", False, False)
    assert len(found.tokens) == len(found.kinds) == 8197
    assert found.tokens[8192:] == [f"[PAD{row}]" for row in range(8192, 8197)]
    assert found.scores is None
    whole = json.loads((DEMO / "tokenizer.json").read_text())
    assert found.tokens[:8192] == sorted(whole["model"]["vocab"], key=whole["model"]["vocab"].get)
    assert found.merges == [" ".join(pair) for pair in whole["model"]["merges"]]


@pytest.mark.parametrize(
    ("pre", "ignore", "name"),
    [
        (byte_level(True), False, "gpt-2"),
        (
            {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level(True)]},
            False,
            "smollm",
        ),
        (split(LLAMA3), True, "llama-bpe"),
        (split(LLAMA3), False, "dbrx"),
        (split(LLAMA3, behavior="Removed", invert=True), False, "dbrx"),
    ],
)
def test_a_name_follows_from_the_definition(tmp_path, pre, ignore, name):
    folder = changed(DEMO, tmp_path / "other", pre_tokenizer=pre, model={"ignore_merges": ignore})
    assert read_vocabulary(folder, 8192).pre == name


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"pre_tokenizer": split(r"\w+")}, r"is not known to exist in llama.cpp: \\w\+ then bytes"),
        ({"pre_tokenizer": split(LLAMA3, behavior="MergedWithNext")}, "MergedWithNext"),
        ({"pre_tokenizer": byte_level(True, prefix=True)}, "space, words"),
        ({"pre_tokenizer": None}, "None"),
        ({"model": {"ignore_merges": True}}, "ignore_merges True"),
        ({"normalizer": {"type": "Lowercase"}}, "normalises text"),
        ({"model": {"type": "Unigram"}}, "is a Unigram"),
    ],
)
def test_a_tokenizer_that_llama_cpp_has_not(tmp_path, monkeypatch, parts, said):
    folder = changed(DEMO, tmp_path / "other", **parts)
    with pytest.raises(ExportError, match=rf"{said}[\s\S]*\n  do: choose another format"):
        read_vocabulary(folder, 8192)


def test_a_normaliser_that_rarely_matters_is_reported(tmp_path):
    folder = changed(DEMO, tmp_path / "other", normalizer={"type": "NFC"})
    assert "composed form" in read_vocabulary(folder, 8192).notes[0]


def test_an_id_beyond_the_rows():
    with pytest.raises(ExportError, match="has id 8191 .* in 8190 rows"):
        read_vocabulary(DEMO, 8190)


def test_two_tokens_of_one_text(tmp_path):
    """llama.cpp ends the process there."""
    added = json.loads((DEMO / "tokenizer.json").read_text())["added_tokens"]
    twin = added[0] | {"id": 8193, "content": "[PAD8192]", "special": False}
    folder = changed(DEMO, tmp_path / "other", added_tokens=[*added, twin])
    with pytest.raises(ExportError, match="8193 different texts in 8194 rows"):
        read_vocabulary(folder, 8194)


def test_sentencepiece_scores_fall_in_the_order_of_merges(spoken):
    found, kind = read_vocabulary(spoken, 409), gguf.TokenType
    assert (found.model, found.pre, found.merges) == ("llama", "default", None)
    assert found.kinds[:3] == [kind.UNKNOWN, kind.CONTROL, kind.CONTROL]
    assert found.kinds[3:259] == [kind.BYTE] * 256
    assert found.kinds[401:] == [kind.UNUSED] * 8
    whole = json.loads((spoken / "tokenizer.json").read_text())
    made = list(dict.fromkeys("".join(pair) for pair in whole["model"]["merges"]))
    score = dict(zip(found.tokens, found.scores, strict=True))
    assert len(made) >= 50
    assert [score[token] for token in made] == [-float(rank) for rank in range(len(made))]
    assert max(score[token] for token in score.keys() - set(made)) < min(score[token] for token in made)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda merges: merges[1:], "are tokens without a merge"),
        (lambda merges: [*merges[1:], merges[0]], "are not adjacent"),
    ],
)
def test_merges_that_no_scores_can_say(spoken, tmp_path, damage, said):
    whole = json.loads((spoken / "tokenizer.json").read_text())
    merges = whole["model"]["merges"]
    twice = next(at for at in range(1, len(merges)) if "".join(merges[at]) == "".join(merges[at - 1]))
    merges[:] = merges[twice - 1 : twice + 1] + merges[: twice - 1] + merges[twice + 1 :]
    folder = changed(spoken, tmp_path / "other", model={"merges": damage(merges)})
    with pytest.raises(ExportError, match=f"is not a sentencepiece BPE: .*{said}"):
        read_vocabulary(folder, 409)


def test_spaces_marked_otherwise(spoken, tmp_path):
    pre = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": False}
    folder = changed(spoken, tmp_path / "other", normalizer=None, pre_tokenizer=pre)
    with pytest.raises(ExportError, match="its pre-tokenizer Metaspace"):
        read_vocabulary(folder, 409)
    again = changed(spoken, tmp_path / "again", normalizer=None, pre_tokenizer=pre | {"prepend_scheme": "always"})
    assert read_vocabulary(again, 409).model == "llama"
    assert Tokenizer.from_file(str(again / "tokenizer.json")).encode("a b").ids


@pytest.mark.slow
def test_phi_3_is_what_llama_cpp_makes_of_it(tmp_path):
    """The vocabulary of llama.cpp's own test file: every text, every kind, the order of every score."""
    theirs, ours = SHARED / "tokenizers/gguf/ggml-vocab-phi-3.gguf", SHARED / "tokenizers/phi-3-mini"
    if not theirs.is_file():
        pytest.skip("no published tokenizers at ../shared/data/tokenizers, beside the repository")
    folder = changed(ours, tmp_path / "phi")
    (folder / "config.json").write_bytes((SHARED / "configs/Phi-3-mini-4k-instruct/config.json").read_bytes())
    found, fields = read_vocabulary(folder, 32064), gguf.GGUFReader(theirs).fields
    wanted = {key.rpartition(".")[2]: field.contents() for key, field in fields.items() if "tokenizer" in key}
    assert found.tokens == wanted["tokens"]
    kinds = [new for new, old in zip(found.kinds, wanted["token_type"], strict=True) if new != old]
    assert len(kinds) == 54  # 53 fillers, which are UNUSED here and CONTROL there, and <unk>
    merged = [row for row in range(259, 32000) if found.scores[row] > min(found.scores)]
    assert len(merged) > 29_000
    assert sorted(merged, key=lambda row: -found.scores[row]) == sorted(merged, key=lambda row: -wanted["scores"][row])
