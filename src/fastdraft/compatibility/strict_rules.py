"""Our own rules, stronger than any engine's: a draft that keeps them works wherever its target does."""

from __future__ import annotations

from fastdraft.compatibility.rule import Judgement, Rule, all_compared, compared, first_of, needed
from fastdraft.models.model_files import Side
from fastdraft.models.token_bytes import PROBES, encode, show


def _same_bytes(target: Side, draft: Side) -> Judgement:
    """An id that means two things is accepted by chance, and written as the target's."""
    ours, theirs = target.spelled, draft.spelled
    unlike = [n for n in sorted(ours.keys() | theirs.keys()) if ours.get(n) != theirs.get(n)]
    counted = compared("ids", f"{len(ours):,}", f"{len(theirs):,}")
    if not unlike:
        return Judgement(True, f"{counted}, each the same bytes")
    first = compared(f"differ, {unlike[0]}", show(ours.get(unlike[0])), show(theirs.get(unlike[0])))
    return Judgement(False, f"{counted}; {len(unlike):,} {first}", needed(tokenizer=True))


def _same_cutting(target: Side, draft: Side) -> Judgement:
    """Equal definitions cut every text alike; probe texts also see what is done outside of them."""
    parts = [part for part, defined in target.definition.items() if defined != draft.definition[part]]
    texts = (*PROBES, *(f"a{token}b" for token in target.tokenizer.all_special_tokens))
    unlike = [text for text in texts if encode(target.tokenizer, text) != encode(draft.tokenizer, text)]
    defined = f"unlike: {', '.join(parts)}" if parts else f"{len(target.definition)} parts of its definition equal"
    shown = f", {first_of([repr(text) for text in unlike])}" if unlike else ""
    why = f"{defined}; {len(unlike)} of {len(texts)} probe texts cut otherwise{shown}"
    return Judgement(not parts and not unlike, why, needed(tokenizer=bool(parts or unlike)))


def _same_specials(target: Side, draft: Side) -> Judgement:
    """Roles with their tokens and ids, and every token that is marked as special."""
    ours, theirs = _specials(target), _specials(draft)
    unlike = [
        compared(key, ours.get(key), theirs.get(key)) for key in ours | theirs if ours.get(key) != theirs.get(key)
    ]
    why = f"{len(unlike)} differ, {first_of(unlike)}" if unlike else f"{len(ours)} roles and marks equal"
    return Judgement(not unlike, why, needed(tokenizer=bool(unlike)))


def _specials(side: Side) -> dict[str, str]:
    tokenizer = side.tokenizer
    named = {role: token for role, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    roles = {role: f"{token} ({tokenizer.convert_tokens_to_ids(token)})" for role, token in named.items()}
    marked = {str(number): token.content for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return roles | marked


def _same_template(target: Side, draft: Side) -> Judgement:
    """A chat is written for both by the target's template; a draft with another one was trained on other chats."""
    ours, theirs = target.tokenizer.chat_template, draft.tokenizer.chat_template
    if ours == theirs:
        return Judgement(True, "none on both" if ours is None else f"the same {len(ours):,} characters")
    lengths = [None if found is None else f"{len(found):,} characters" for found in (ours, theirs)]
    why = "as long, but not the same" if lengths[0] == lengths[1] else compared("template", *lengths)
    return Judgement(False, why, needed(tokenizer=True))


def _same_rows(target: Side, draft: Side) -> Judgement:
    """Input embedding, output layer and config.json, all with the target's padded vocabulary."""
    found = {"embedding": draft.embedding_rows, "output": draft.output_rows, "config.json": draft.vocab_size}
    stated = ", ".join(f"{name} {rows:,}" for name, rows in found.items())
    holds = set(found.values()) == {target.output_rows}
    return Judgement(holds, f"target {target.output_rows:,}; draft: {stated}", needed(rows=not holds))


def _same_generation(target: Side, draft: Side) -> Judgement:
    """The same ids end a text, begin one and fill one up."""
    found = {"eos": (sorted(target.ends), sorted(draft.ends))} | {r: _role(target, draft, r) for r in ("bos", "pad")}
    equal, why = all_compared(found)
    return Judgement(equal, why, needed(ids=not equal))


def _role(target: Side, draft: Side, role: str) -> tuple[int | None, int | None]:
    """Where the target's generation_config.json names no id, a draft's may: what counts is what engines find."""
    if getattr(target.generation, f"{role}_token_id") is None:
        return target.role_id(role), draft.role_id(role)
    return target.named(role), draft.named(role)


def _as_long(target: Side, draft: Side) -> Judgement:
    """Beyond its context a draft is out of its depth, or (vLLM) not asked; output stays right, the gain is lost."""
    ours, theirs = target.context_tokens(), draft.context_tokens()
    return Judgement(ours is None or theirs is None or theirs >= ours, compared("tokens", ours, theirs))


OURS = (
    Rule("every id, the same bytes", "ours", "docs/check.md", _same_bytes),
    Rule("every text, the same ids", "ours", "docs/check.md", _same_cutting),
    Rule("special tokens", "ours", "docs/check.md", _same_specials),
    Rule("chat template", "ours", "docs/check.md", _same_template),
    Rule("rows = padded vocabulary", "ours", "docs/check.md", _same_rows),
    Rule("generation config", "ours", "docs/check.md", _same_generation),
    Rule("context length", "ours", "docs/check.md", _as_long, only_warns=True),
)
