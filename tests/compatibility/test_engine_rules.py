"""Every rule holds on a pair that fits, and each has been seen to fail on a pair that breaks it and few others."""

import json
import shutil
from pathlib import Path

import pytest

from fastdraft.compatibility.engine_rules import ENGINE_RULES
from fastdraft.compatibility.strict_rules import STRICT_RULES
from fastdraft.config import DraftPart, TargetPart
from fastdraft.models import draft, pretrained, target
from fastdraft.models.model_files import read
from fastdraft.models.shape import derive
from fastdraft.models.target import TargetCard
from fastdraft.models.token_bytes import id_bytes
from fastdraft.system.cards import Cost
from fastdraft.system.errors import VocabularyMismatch

from .conftest import ROWS, TOKENS, edit, held

RULES = (*ENGINE_RULES, *STRICT_RULES)
SIZES = {"transformers, generate", "transformers, pipeline", "vLLM, draft_model", "SGLang, STANDALONE"}
OPENVINO = {"OpenVINO GenAI", "OpenVINO GenAI, NPU"}
LLAMA_CPP, NPU = {"llama.cpp, -md"}, {"OpenVINO GenAI, NPU"}
BYTES, CUTTING = {"every id, the same bytes"}, {"every text, the same ids"}
SPECIALS, TEMPLATE, PADDED = {"special tokens"}, {"chat template"}, {"rows = padded vocabulary"}
GENERATION, CONTEXT = {"generation config"}, {"context length"}


def change(change_it):
    """A break of tokenizer.json."""

    def spoil(folder: Path) -> None:
        path = folder / "tokenizer.json"
        content = json.loads(path.read_text())
        change_it(content)
        path.write_text(json.dumps(content, ensure_ascii=False))

    return spoil


def rows(number: int):
    """A draft with another number of rows, in its weights too."""

    def spoil(folder: Path, make_model) -> None:
        make_model(folder, 16, vocab_size=number)

    spoil.makes_a_model = True
    return spoil


def config(**keys: object):
    return lambda folder: edit(folder / "config.json", **keys)


def renamed(number: int):
    """One id with the bytes of another."""

    def change_it(content) -> None:
        vocab = content["model"]["vocab"]
        (old,) = (token for token, i in vocab.items() if i == number)
        vocab["Ġzq"] = vocab.pop(old)
        content["model"]["merges"] = [pair for pair in content["model"]["merges"] if old not in (*pair, "".join(pair))]

    return change(change_it)


def other_bos(content) -> None:
    content["post_processor"] = None


def special(content) -> None:
    content["added_tokens"][3]["special"] = True


def with_prefix(content) -> None:
    content["pre_tokenizer"]["add_prefix_space"] = True


def sentencepiece(content) -> None:
    content["model"]["byte_fallback"] = True


def late_name(content) -> None:
    content["added_tokens"].append({**content["added_tokens"][-1], "content": "<late>", "id": TOKENS + 1})


BROKEN = {
    "a row more": (rows(ROWS + 1), SIZES | NPU | PADDED),
    "128 rows more": (rows(ROWS + 128), SIZES | NPU | PADDED),
    "129 rows more": (rows(ROWS + 129), SIZES | NPU | PADDED | LLAMA_CPP),
    "8 rows less, all of padding": (rows(ROWS - 8), SIZES | NPU | PADDED),
    "config.json says more than the weights have": (config(vocab_size=ROWS + 2), SIZES | PADDED),
    "another bos in config.json": (config(bos_token_id=3), {"transformers, pipeline"}),
    "no pad in config.json": (config(pad_token_id=None), {"transformers, pipeline"}),
    "one eos of two": (config(eos_token_id=[0, 5]), {"transformers, pipeline"} | GENERATION),
    "a text renamed": (renamed(300), {"SGLang, STANDALONE"} | LLAMA_CPP | BYTES | CUTTING),
    "a text renamed below the sixth": (renamed(4), {"SGLang, STANDALONE"} | BYTES),
    "a name more": (change(late_name), {"SGLang, STANDALONE"} | LLAMA_CPP | BYTES),
    "no bos before a text": (change(other_bos), LLAMA_CPP | OPENVINO | CUTTING),
    "another kind of vocabulary": (change(sentencepiece), LLAMA_CPP | CUTTING),
    "a space before a text": (change(with_prefix), OPENVINO | CUTTING),
    "marked as special": (change(special), SPECIALS),
    "another pad": (
        lambda folder: edit(folder / "tokenizer_config.json", pad_token="<end>"),
        OPENVINO | SPECIALS,
    ),
    "another template": (lambda folder: (folder / "chat_template.jinja").write_text("{{ messages }}"), TEMPLATE),
    "no template": (lambda folder: (folder / "chat_template.jinja").unlink(), TEMPLATE),
    "another end of text": (
        lambda folder: edit(folder / "generation_config.json", eos_token_id=[0, 7]),
        GENERATION,
    ),
    "another bos to generate with": (
        lambda folder: edit(folder / "generation_config.json", bos_token_id=9),
        GENERATION,
    ),
    "a shorter context": (config(max_position_embeddings=61), CONTEXT),
}


def broken(report) -> set[str]:
    return {found.rule for found in report.findings if found.verdict != "holds"}


def test_a_pair_that_fits_keeps_every_rule(fitting):
    report = held(*fitting)
    assert broken(report) == set()
    assert report.holds
    assert report.obstacle is None
    assert [found.rule for found in report.findings] == [rule.name for rule in RULES]
    assert len(RULES) >= 14
    assert all(found.why and found.version and found.source and found.repair == () for found in report.findings)


@pytest.mark.parametrize(("spoil", "rules"), BROKEN.values(), ids=BROKEN.keys())
def test_what_breaks_which_rule(pair, make_model, spoil, rules):
    """Both ways: the rules do not ask who is who, but for the context."""
    mine, theirs = pair
    spoil(theirs, make_model) if hasattr(spoil, "makes_a_model") else spoil(theirs)
    report = held(mine, theirs)
    assert broken(report) == rules
    assert report.holds is (rules == CONTEXT)
    for found in report.findings:
        assert bool(found.repair) is (found.verdict == "fails" and report.obstacle is None)
    assert set(report.repairs) == {kind for found in report.findings for kind in found.repair}


def test_every_rule_has_been_seen_to_fail():
    assert set().union(*(rules for _, rules in BROKEN.values())) == {rule.name for rule in RULES}


def test_the_figures_of_both_sides_are_reported(pair, make_model):
    rows(ROWS + 129)(pair[1], make_model)
    edit(pair[1] / "generation_config.json", eos_token_id=[0, 7])
    why = {found.rule: found.why for found in held(*pair).findings}
    assert why["vLLM, draft_model"] == "vocab_size: target 317, draft 446"
    assert why["llama.cpp, -md"].startswith("sizes: target 317, draft 446 (at most 128 apart)")
    assert why["OpenVINO GenAI, NPU"].startswith("logits: target 317, draft 446; ")
    assert why["rows = padded vocabulary"] == "target 317; draft: embedding 446, output 446, config.json 446"
    assert why["generation config"] == "eos: target [0], draft [0, 7]"


def test_what_another_tokenizer_is_reported(pair):
    renamed(300)(pair[1])
    why = {found.rule: found.why for found in held(*pair).findings}
    assert why["every id, the same bytes"].startswith(f"ids {TOKENS + 1} on both; 1 differ, 300: target '")
    assert why["every id, the same bytes"].endswith("', draft ' zq'")
    assert "2 texts differ, " in why["SGLang, STANDALONE"]
    assert "1 texts differ, 300: target " in why["llama.cpp, -md"]
    assert "probe texts encoded differently" in why["every text, the same ids"]


@pytest.mark.parametrize(
    ("token", "decoder", "wanted"),
    [
        ("Ġ🙂".replace("🙂", "ðŁĻĤ"), {"type": "ByteLevel"}, " 🙂".encode()),
        ("ðŁ", {"type": "ByteLevel"}, b"\xf0\x9f"),
        ("▁the", {"type": "Metaspace"}, b" the"),
        ("<0xE2>", {"type": "Sequence", "decoders": [{"type": "ByteFallback"}]}, b"\xe2"),
        ("<0xE2>", {"type": "Fuse"}, b"<0xE2>"),
        ("▁the", {"type": "Fuse"}, "▁the".encode()),
    ],
)
def test_the_bytes_of_a_token(token, decoder, wanted):
    class Backend:
        def to_str(self) -> str:
            return json.dumps({"model": {}, "decoder": decoder} | dict.fromkeys(OTHER_PARTS))

    class Known:
        backend_tokenizer, added_tokens_decoder = Backend(), {}

        def get_vocab(self):
            return {token: 5}

    assert id_bytes(Known()) == {5: wanted}


OTHER_PARTS = ("normalizer", "pre_tokenizer", "post_processor")


def test_bytes_are_those_that_the_tokenizer_decodes(fitting):
    """The distribution behind the table: what ids spell is what the whole text decodes to."""
    side = read(str(fitting[0]))
    for text in ("seven wolves, ñandú 🙂!", " \tunder\n\n", "日本語"):
        ids = side.tokenizer(text, add_special_tokens=False).input_ids
        assert b"".join(side.id_bytes[i] for i in ids) == text.encode()


def test_the_demo_and_a_draft_of_it(tmp_path):
    part = TargetPart(path="demo")
    card = TargetCard(key="k", cost=Cost(seconds=1.0), **target.card(part))
    model = draft.new(derive(pretrained.open_config(part), DraftPart(hidden_size=64, layers=2)), seed=7)
    draft.save(model, pretrained.folder_of(part), card, tmp_path / "draft")
    report = held("demo", tmp_path / "draft")
    assert broken(report) == set()
    assert (report.target.name, report.target.rows_from, report.target.output_rows) == ("demo", "weights", 8192)


def test_a_saved_draft_pads_as_its_target_generates(tmp_path, fitting):
    """A target names another padding id in generation_config.json than in config.json: what is generated counts."""
    folder = tmp_path / "target"
    shutil.copytree(fitting[0], folder)
    edit(folder / "generation_config.json", pad_token_id=7, eos_token_id=[0, 9])
    part = TargetPart(path=str(folder))
    card = TargetCard(key="k", cost=Cost(seconds=1.0), **target.card(part))
    model = draft.new(derive(pretrained.open_config(part), DraftPart(hidden_size=16, layers=1)), seed=7)
    draft.save(model, folder, card, tmp_path / "draft")
    assert broken(held(folder, tmp_path / "draft")) == set()


@pytest.mark.parametrize("keys", [{"vocab_size": ROWS + 3}, {"vocab_size": TOKENS - 3}])
def test_a_target_that_does_not_fit_itself(pair, make_model, keys):
    if keys["vocab_size"] < TOKENS:
        make_model(pair[0], 24, **keys)
    edit(pair[0] / "config.json", **keys)
    with pytest.raises(VocabularyMismatch, match="(?s)config.json says .*\n  wanted: .*\n  do: ") as caught:
        held(*pair)
    assert caught.value.exit_code == 2
