"""Rows for the target's vocabulary: the donor's own where it means the same, its pieces' mean where it does not."""

import pytest
import torch
from tokenizers import AddedToken

from fastdraft.init.vocabulary import give_rows, pieces_of_tokens, same_tokens
from fastdraft.models import model_files
from fastdraft.models.token_bytes import spelled
from fastdraft.system.errors import VocabularyMismatch

KINDS = ("bpe", "sentencepiece")


@pytest.fixture
def donor_of(make_model, make_tokenizer, save_donor):
    """A donor with a tokenizer of a kind, and more rows than tokens."""

    def build(kind="bpe", rows=337, tokenizer=None, **model):
        tokenizer = tokenizer or make_tokenizer[kind](*([307] if kind == "bpe" else []))
        return model_files.read(str(save_donor(make_model(vocab_size=rows, **model), tokenizer)))

    return build


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pieces_of", [same_tokens, pieces_of_tokens])
def test_the_donors_own_tokenizer_gives_the_donors_own_rows(kind, pieces_of, donor_of):
    donor = donor_of(kind)
    tokens = len(donor.tokenizer)
    assert tokens >= 300
    assert pieces_of(donor, donor.tokenizer, tokens) == [[i] for i in range(tokens)]


@pytest.mark.parametrize(("rows", "tied"), [(331, True), (337, True), (353, True), (331, False), (353, False)])
def test_rows_are_padded_or_trimmed_and_the_logits_stay(rows, tied, donor_of, make_model, batch):
    donor = donor_of(tie_word_embeddings=tied)
    before, model = (make_model(vocab_size=337, tie_word_embeddings=tied) for _ in range(2))
    pieces = same_tokens(donor, donor.tokenizer, rows)
    given = give_rows(model, pieces, sorted(donor.spelled))
    with torch.no_grad():
        logits, theirs = (m(batch.inputs_BT, use_cache=False).logits for m in (given, before))
    shared = min(rows, 337)
    assert logits.shape[-1] == rows
    assert torch.equal(logits[..., :shared], theirs[..., :shared])
    assert (given.get_input_embeddings().weight is given.get_output_embeddings().weight) == tied
    mean_E = before.get_output_embeddings().weight[: len(donor.tokenizer)].mean(0)
    for row in range(337, rows):
        torch.testing.assert_close(given.get_output_embeddings().weight[row], mean_E)


def test_ids_that_mean_something_else_are_refused(donor_of, make_tokenizer):
    donor, ours = donor_of("sentencepiece"), make_tokenizer["bpe"](307)
    said = (
        r"draft.init: the tokenizer of .* means something else by \d+ of the target's 307 ids, first 0: .* for '<end>'"
    )
    with pytest.raises(
        VocabularyMismatch, match=f"{said}\n  wanted: .*\n  do: set draft.init=transplant:{donor.name}"
    ) as e:
        same_tokens(donor, ours, 311)
    assert e.value.exit_code == 2


def test_a_vocabulary_that_is_only_longer_is_refused(donor_of, make_tokenizer):
    ours = make_tokenizer["bpe"](309)
    donor = donor_of("bpe", tokenizer=make_tokenizer["bpe"](307))
    with pytest.raises(VocabularyMismatch, match="by 2 of the target's 309 ids, first 307: nothing for"):
        same_tokens(donor, ours, 311)


def test_tokens_that_were_added_later_are_let_pass(donor_of, make_tokenizer):
    ours = make_tokenizer["bpe"](307)
    ours.add_special_tokens({"additional_special_tokens": ["<image>"]})
    donor = donor_of("bpe", rows=307, tokenizer=make_tokenizer["bpe"](307))
    assert same_tokens(donor, ours, 311) == [*([i] for i in range(307)), *[[]] * 4]


@pytest.mark.parametrize("kinds", [KINDS, KINDS[::-1]])
def test_pieces_spell_their_token(kinds, donor_of, make_tokenizer):
    """The bytes of a token are those of its pieces, whichever way its text is written on both sides."""
    ours, theirs = kinds
    tokenizer = make_tokenizer[ours](*([321] if ours == "bpe" else []))
    donor = donor_of(theirs)
    pieces, texts = pieces_of_tokens(donor, tokenizer, 340), spelled(tokenizer)
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    seen = 0
    for i, text in texts.items():
        if i not in special and pieces[i]:
            assert b"".join(donor.spelled[piece] for piece in pieces[i]) == text
            seen += 1
    assert seen >= 290
    assert max(map(len, pieces)) >= 2
    assert pieces[len(tokenizer) :] == [[]] * (340 - len(tokenizer))


def test_a_part_of_a_letter_and_spaces_are_found(donor_of, make_tokenizer):
    ours = make_tokenizer["bpe"](321)
    donor = donor_of("sentencepiece")
    pieces = pieces_of_tokens(donor, ours, 321)
    named, theirs = {text: i for i, text in spelled(ours).items()}, donor.tokenizer.convert_ids_to_tokens
    assert theirs(pieces[named[b"\xc3"]]) == ["<0xC3>"]
    assert theirs(pieces[named[b" "]]) in (["▁"], ["<0x20>"])
    word = next(text for text in sorted(named) if text.startswith(b" ") and len(text) > 3)
    assert theirs(pieces[named[word]])[0].startswith("▁")


def test_special_tokens_go_by_role_then_by_name(donor_of, make_tokenizer):
    ours = make_tokenizer["bpe"](307, end="<|over|>")
    ours.add_special_tokens({"pad_token": "<|void|>", "additional_special_tokens": ["<s>", "<|tool|>"]})
    ours.add_tokens([AddedToken("    ", special=False)])
    donor = donor_of("sentencepiece")
    pieces = pieces_of_tokens(donor, ours, 320)
    number, theirs = ours.convert_tokens_to_ids, donor.tokenizer
    assert pieces[number("<|over|>")] == [theirs.eos_token_id]
    assert pieces[number("<s>")] == [theirs.bos_token_id]  # by its name: it begins no text here
    assert pieces[number("<|tool|>")] == pieces[number("<|void|>")] == []
    assert b"".join(donor.spelled[piece] for piece in pieces[number("    ")]) == b"    "


def test_tokens_beyond_the_donors_rows_take_the_mean(donor_of, make_model):
    donor = donor_of(rows=305)
    given = give_rows(make_model(vocab_size=305), pieces_of_tokens(donor, donor.tokenizer, 307), sorted(donor.spelled))
    rows_VE = given.get_input_embeddings().weight
    torch.testing.assert_close(
        rows_VE[305:], make_model(vocab_size=305).get_input_embeddings().weight.mean(0).repeat(2, 1)
    )


def test_a_row_is_the_mean_of_its_pieces(make_model):
    rows_VE = make_model().get_input_embeddings().weight.clone()
    given = give_rows(make_model(), [[4], [1, 2, 9], [], [7, 7]], range(1, 300)).get_input_embeddings().weight
    torch.testing.assert_close(given[1], rows_VE[[1, 2, 9]].mean(0))
    torch.testing.assert_close(given[2], rows_VE[1:300].mean(0))
    assert torch.equal(given[0], rows_VE[4])
    assert torch.equal(given[3], rows_VE[7])
