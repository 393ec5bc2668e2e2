"""Rows for the target's vocabulary: the donor's own for the same tokens, the mean of pieces for other tokens."""

import pytest
import torch
from tokenizers import AddedToken

from fastdraft.init.vocabulary import rows_by_pieces, rows_of_same_vocabulary, set_vocabulary_rows
from fastdraft.models import model_files
from fastdraft.models.token_bytes import id_bytes
from fastdraft.system.errors import VocabularyMismatch

KINDS = ("bpe", "sentencepiece")


@pytest.fixture
def donor_of(make_model, make_tokenizer, save_donor):
    """A donor with a tokenizer of this kind, and with more rows than tokens."""

    def build(kind="bpe", rows=337, tokenizer=None, **model):
        tokenizer = tokenizer or make_tokenizer[kind](*([307] if kind == "bpe" else []))
        return model_files.read(str(save_donor(make_model(vocab_size=rows, **model), tokenizer)))

    return build


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("donor_rows", [rows_of_same_vocabulary, rows_by_pieces])
def test_with_its_own_tokenizer_a_donor_keeps_its_rows(kind, donor_rows, donor_of):
    donor = donor_of(kind)
    tokens = len(donor.tokenizer)
    assert tokens >= 300
    assert donor_rows(donor, donor.tokenizer, tokens) == [[i] for i in range(tokens)]


@pytest.mark.parametrize(("rows", "tied"), [(331, True), (337, True), (353, True), (331, False), (353, False)])
def test_rows_are_padded_or_trimmed_and_logits_are_unchanged(rows, tied, donor_of, make_model, batch):
    donor = donor_of(tie_word_embeddings=tied)
    before, model = (make_model(vocab_size=337, tie_word_embeddings=tied) for _ in range(2))
    donor_rows = rows_of_same_vocabulary(donor, donor.tokenizer, rows)
    changed = set_vocabulary_rows(model, donor_rows, sorted(donor.id_bytes))
    with torch.no_grad():
        logits, expected = (m(batch.inputs_BT, use_cache=False).logits for m in (changed, before))
    shared = min(rows, 337)
    assert logits.shape[-1] == rows
    assert torch.equal(logits[..., :shared], expected[..., :shared])
    assert (changed.get_input_embeddings().weight is changed.get_output_embeddings().weight) == tied
    mean_E = before.get_output_embeddings().weight[: len(donor.tokenizer)].mean(0)
    for row in range(337, rows):
        torch.testing.assert_close(changed.get_output_embeddings().weight[row], mean_E)


def test_ids_with_other_bytes_are_an_error(donor_of, make_tokenizer):
    donor, tokenizer = donor_of("sentencepiece"), make_tokenizer["bpe"](307)
    message = r"draft.init: \d+ of the target's 307 ids .*, first 0: .* '<end>'"
    with pytest.raises(VocabularyMismatch, match=f"{message}(.|\n)*  do: set draft.init=transplant:{donor.name}") as e:
        rows_of_same_vocabulary(donor, tokenizer, 311)
    assert e.value.exit_code == 2


def test_a_longer_vocabulary_is_an_error(donor_of, make_tokenizer):
    tokenizer = make_tokenizer["bpe"](309)
    donor = donor_of("bpe", tokenizer=make_tokenizer["bpe"](307))
    with pytest.raises(VocabularyMismatch, match="2 of the target's 309 ids .*, first 307: nothing"):
        rows_of_same_vocabulary(donor, tokenizer, 311)


def test_added_tokens_are_accepted(donor_of, make_tokenizer):
    tokenizer = make_tokenizer["bpe"](307)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    donor = donor_of("bpe", rows=307, tokenizer=make_tokenizer["bpe"](307))
    assert rows_of_same_vocabulary(donor, tokenizer, 311) == [*([i] for i in range(307)), *[[]] * 4]


@pytest.mark.parametrize("kinds", [KINDS, KINDS[::-1]])
def test_pieces_spell_their_token(kinds, donor_of, make_tokenizer):
    """The bytes of the pieces make up the bytes of the token, for any pair of tokenizer kinds."""
    target_kind, donor_kind = kinds
    tokenizer = make_tokenizer[target_kind](*([321] if target_kind == "bpe" else []))
    donor = donor_of(donor_kind)
    pieces, texts = rows_by_pieces(donor, tokenizer, 340), id_bytes(tokenizer)
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    checked = 0
    for i, text in texts.items():
        if i not in special and pieces[i]:
            assert b"".join(donor.id_bytes[piece] for piece in pieces[i]) == text
            checked += 1
    assert checked >= 290
    assert max(map(len, pieces)) >= 2
    assert pieces[len(tokenizer) :] == [[]] * (340 - len(tokenizer))


def test_parts_of_a_character_and_spaces_have_pieces(donor_of, make_tokenizer):
    tokenizer = make_tokenizer["bpe"](321)
    donor = donor_of("sentencepiece")
    pieces = rows_by_pieces(donor, tokenizer, 321)
    id_of_bytes = {text: i for i, text in id_bytes(tokenizer).items()}
    tokens_of = donor.tokenizer.convert_ids_to_tokens
    assert tokens_of(pieces[id_of_bytes[b"\xc3"]]) == ["<0xC3>"]
    assert tokens_of(pieces[id_of_bytes[b" "]]) in (["▁"], ["<0x20>"])
    word = next(text for text in sorted(id_of_bytes) if text.startswith(b" ") and len(text) > 3)
    assert tokens_of(pieces[id_of_bytes[word]])[0].startswith("▁")


def test_special_tokens_are_matched_by_role_then_by_name(donor_of, make_tokenizer):
    tokenizer = make_tokenizer["bpe"](307, end="<|over|>")
    tokenizer.add_special_tokens({"pad_token": "<|void|>", "additional_special_tokens": ["<s>", "<|tool|>"]})
    tokenizer.add_tokens([AddedToken("    ", special=False)])
    donor = donor_of("sentencepiece")
    pieces = rows_by_pieces(donor, tokenizer, 320)
    number = tokenizer.convert_tokens_to_ids
    assert pieces[number("<|over|>")] == [donor.tokenizer.eos_token_id]
    assert pieces[number("<s>")] == [donor.tokenizer.bos_token_id]  # by name: it is not the bos token of the target
    assert pieces[number("<|tool|>")] == pieces[number("<|void|>")] == []
    assert b"".join(donor.id_bytes[piece] for piece in pieces[number("    ")]) == b"    "


def test_tokens_beyond_the_donors_rows_take_the_mean(donor_of, make_model):
    donor = donor_of(rows=305)
    donor_rows = rows_by_pieces(donor, donor.tokenizer, 307)
    changed = set_vocabulary_rows(make_model(vocab_size=305), donor_rows, sorted(donor.id_bytes))
    rows_VE = changed.get_input_embeddings().weight
    torch.testing.assert_close(
        rows_VE[305:], make_model(vocab_size=305).get_input_embeddings().weight.mean(0).repeat(2, 1)
    )


def test_a_row_is_the_mean_of_its_pieces(make_model):
    rows_VE = make_model().get_input_embeddings().weight.clone()
    changed = set_vocabulary_rows(make_model(), [[4], [1, 2, 9], [], [7, 7]], range(1, 300))
    result = changed.get_input_embeddings().weight
    torch.testing.assert_close(result[1], rows_VE[[1, 2, 9]].mean(0))
    torch.testing.assert_close(result[2], rows_VE[1:300].mean(0))
    assert torch.equal(result[0], rows_VE[4])
    assert torch.equal(result[3], rows_VE[7])
