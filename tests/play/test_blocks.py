"""The playground decodes speculatively: greedy text is the target's own, in the blocks of the one-pass evaluation."""

import numpy as np
import pytest
import torch

from fastdraft.config import TargetPart
from fastdraft.evaluation.marked_tokens import mark_tokens
from fastdraft.models import pretrained
from fastdraft.play.blocks import PLAIN, Block, Request, Transcript, Writer, decode_both, marks
from fastdraft.play.engine_transformers import Transformers
from fastdraft.play.page import MAX_PROMPT_CHARACTERS, make_request, page_states
from fastdraft.play.rendering import text_html, verdict
from fastdraft.synthesize.completions import SamplingParams
from fastdraft.system.errors import PlayError

TOKENS, CONTEXT, VOCABULARY = 23, 97, 8192
PROMPT = np.arange(5) * 7 % 131
GREEDY = SamplingParams(0.0)
HOSTILE = "</i><script>alert(1)</script>\x07\x1b[31m"


@pytest.fixture(scope="module")
def tokenizer():
    return pretrained.open_tokenizer(TargetPart(path="demo"))


@pytest.fixture(scope="module")
def models(tiny_llama, perturbed):
    model = tiny_llama(7, VOCABULARY, CONTEXT)
    return model, perturbed(model, 0.1, 3)


@pytest.fixture(scope="module")
def player(models, tokenizer):
    return Transformers(*models, tokenizer, frozenset(), CONTEXT)


def make(sampling=GREEDY, gamma=3, tokens=TOKENS):
    return Request(PROMPT, sampling, gamma, tokens, seed=11)


def tokens_of(blocks):
    return [token for block in blocks for token in block.tokens]


def greedy_text(model, tokens):
    text = torch.from_numpy(PROMPT)[None]
    for _ in range(tokens):
        with torch.no_grad():
            text = torch.cat([text, model(text).logits[:, -1:].argmax(-1)], 1)
    return text[0, len(PROMPT) :].tolist()


@pytest.mark.parametrize("gamma", [1, 3, 5, 16])
@pytest.mark.parametrize("tokens", [1, 2, TOKENS])
def test_greedy_text_of_both_sides_is_the_targets_own(player, models, gamma, tokens):
    expected = greedy_text(models[0], tokens)
    for side in ("plain", "drafted"):
        blocks = list(player.blocks(make(gamma=gamma, tokens=tokens), side))
        assert tokens_of(blocks) == expected
        assert [block.seconds for block in blocks] == sorted(block.seconds for block in blocks)
    assert len(blocks) <= tokens


def test_greedy_blocks_equal_the_one_pass_walk(player, models):
    expected = greedy_text(models[0], TOKENS)
    text = torch.tensor([[*PROMPT.tolist(), *expected]])
    with torch.no_grad():
        best = models[1](text).logits[0].argmax(-1)[len(PROMPT) - 1 : -1].tolist()
    accept = [float(token == choice) for token, choice in zip(expected, best, strict=True)]
    assert 0 < sum(accept) < TOKENS, "some drafted tokens are accepted, some are not"
    blocks = list(player.blocks(make(), "drafted"))
    actual = "".join(map(marks, blocks))
    one_pass = mark_tokens(accept, 3, [0.5] * TOKENS)
    # Near the end fewer than gamma tokens are drafted, so the last marks may differ from those of the walk.
    assert actual[: TOKENS - 3] == one_pass[: TOKENS - 3]


@pytest.mark.parametrize("sampling", [SamplingParams(1.0), SamplingParams(0.7, 0, 0.8)])
def test_sampled_texts_depend_on_the_seed_alone(player, sampling):
    first, again = (tokens_of(player.blocks(make(sampling), "drafted")) for _ in range(2))
    assert len(first) == TOKENS
    assert first == again


def test_a_draft_that_is_the_target_is_never_corrected(models, tokenizer):
    twins = Transformers(models[0], models[0], tokenizer, frozenset(), CONTEXT)
    blocks = list(twins.blocks(make(gamma=4, tokens=25), "drafted"))
    assert [len(block.tokens) for block in blocks] == [5] * 5
    assert "".join(map(marks, blocks)) == "aaaab" * 5


def test_an_end_of_text_ends_both_sides(models, tokenizer):
    text = greedy_text(models[0], TOKENS)
    end = next(token for place, token in enumerate(text) if place >= 6 and token not in text[:place])
    short = Transformers(*models, tokenizer, frozenset({end}), CONTEXT)
    for side in ("plain", "drafted"):
        assert tokens_of(short.blocks(make(), side)) == text[: text.index(end) + 1]


def test_every_token_has_a_mark():
    assert marks(Block((5,), 0, 0, 0.1)) == PLAIN
    assert marks(Block((5, 6, 7), 2, 4, 0.1)) == "aac"
    assert marks(Block((5, 6, 7), 2, 2, 0.1)) == "aab"
    assert marks(Block((5, 6), 3, 4, 0.1)) == "aa"  # cut after a drafted end of text


def test_the_side_that_has_used_less_time_goes_on():
    class Clocked:
        name, interleaves = "clocks", True

        def blocks(self, _, side):
            step = {"plain": 3.0, "drafted": 1.0}[side]
            yield from (Block((number,), 0, 0, step * (number + 1)) for number in range(4))

    order = [side for side, _ in decode_both(Clocked(), make())]
    assert order == ["plain", "drafted", "drafted", "drafted", "plain", "drafted", "plain", "plain"]
    Clocked.interleaves = False
    assert [side for side, _ in decode_both(Clocked(), make())] == ["plain"] * 4 + ["drafted"] * 4


def test_text_is_escaped():
    shown = text_html(HOSTILE, Transcript([1], [HOSTILE], "c", 1, 1.0))
    assert "<script" not in shown
    assert shown.count("&lt;script&gt;") == 2
    assert not {"\x07", "\x1b"} & set(shown)


def test_a_character_of_several_tokens_is_the_piece_of_the_last(tokenizer):
    ids = tokenizer("π = 3").input_ids
    writer = Writer(tokenizer, PROMPT)
    for token in ids:
        writer.add(Block((token,), 0, 0, 0.1))
    assert "".join(writer.transcript.pieces) == "π = 3"
    assert len(writer.transcript.pieces) == len(ids) == len(writer.transcript.marks)


@pytest.mark.parametrize(
    ("prompt", "tokens", "message"),
    [
        ("  \n", 5, "the prompt is empty"),
        ("x" * (MAX_PROMPT_CHARACTERS + 1), 5, f"at most {MAX_PROMPT_CHARACTERS}"),
        ("a b c", CONTEXT, f"exceed the context of {CONTEXT}"),
    ],
)
def test_invalid_requests_are_refused(player, prompt, tokens, message):
    with pytest.raises(PlayError, match=message):
        make_request(player, prompt, 4, 0, 1, tokens)


def test_a_conversation_is_under_the_targets_template(player, monkeypatch):
    template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<answer>"
    monkeypatch.setattr(player.tokenizer, "chat_template", template)
    first = [{"role": "user", "content": "def f():"}]
    request = make_request(player, first, 3, 0.0, 1.0, TOKENS)
    assert player.tokenizer.decode(request.prompt) == "<user>def f():<answer>"
    *_, state = page_states(player, first, request)
    assert state.conversation[:-1] == first
    assert state.conversation[-1]["role"] == "assistant"
    following = make_request(player, [*state.conversation, *first], 3, 0.0, 1.0, TOKENS)
    answer = state.conversation[-1]["content"]
    assert player.tokenizer.decode(following.prompt) == f"<user>def f():<assistant>{answer}<user>def f():<answer>"
    monkeypatch.setattr(player.tokenizer, "chat_template", "{{ raise_exception('never') }}")
    with pytest.raises(PlayError, match="without chat"):
        make_request(player, first, 3, 0.0, 1.0, TOKENS)


def test_the_last_page_state_has_the_verdict(player):
    request = make_request(player, "def f():", 3, 0.0, 1.0, TOKENS)
    *_, (plain, drafted, _, _, comparison, _) = page_states(player, "def f():", request)
    assert plain != drafted
    assert "The texts are equal, token for token." in comparison
    differing = verdict(
        Transcript([1, 2], ["", ""], "pp", 2, 1.0), Transcript([1, 3], ["", ""], "ac", 1, 1.0), True, True
    )
    assert "from token 2 on" in differing
    sampled = [
        verdict(Transcript([1], [""], "p", 1, 1.0), Transcript([2], [""], "c", 1, 0.5), False, kept) for kept in (0, 1)
    ]
    assert "does not sample from the target's distribution" in sampled[0]
    assert "samples from the same distribution" in sampled[1]
    assert all("2.00 times" in each for each in sampled)
