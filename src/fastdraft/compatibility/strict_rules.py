"""Our own rules, stronger than any engine's: a draft that keeps them works wherever its target does."""

from __future__ import annotations

from fastdraft.compatibility.rule import Rule, RuleResult, all_compared, compared, first_of, needed
from fastdraft.models.model_files import Side
from fastdraft.models.token_bytes import PROBES, encode, show


def _same_bytes(target: Side, draft: Side) -> RuleResult:
    """An id that means two things is accepted by chance, and written as the target's."""
    of_target, of_draft = target.spelled, draft.spelled
    unlike = [n for n in sorted(of_target.keys() | of_draft.keys()) if of_target.get(n) != of_draft.get(n)]
    counted = compared("ids", f"{len(of_target):,}", f"{len(of_draft):,}")
    if not unlike:
        return RuleResult(True, f"{counted}, each the same bytes")
    first = compared(f"differ, {unlike[0]}", show(of_target.get(unlike[0])), show(of_draft.get(unlike[0])))
    return RuleResult(False, f"{counted}; {len(unlike):,} {first}", needed(tokenizer=True))


def _same_cutting(target: Side, draft: Side) -> RuleResult:
    """Equal definitions cut every text alike; probe texts also see what is done outside of them."""
    parts = [part for part, defined in target.definition.items() if defined != draft.definition[part]]
    texts = (*PROBES, *(f"a{token}b" for token in target.tokenizer.all_special_tokens))
    unlike = [text for text in texts if encode(target.tokenizer, text) != encode(draft.tokenizer, text)]
    defined = f"unlike: {', '.join(parts)}" if parts else f"{len(target.definition)} parts of its definition equal"
    shown = f", {first_of([repr(text) for text in unlike])}" if unlike else ""
    why = f"{defined}; {len(unlike)} of {len(texts)} probe texts cut otherwise{shown}"
    return RuleResult(not parts and not unlike, why, needed(tokenizer=bool(parts or unlike)))


def _same_specials(target: Side, draft: Side) -> RuleResult:
    """Roles with their tokens and ids, and every token that is marked as special."""
    of_target, of_draft = _specials(target), _specials(draft)
    unlike = [
        compared(key, of_target.get(key), of_draft.get(key))
        for key in of_target | of_draft
        if of_target.get(key) != of_draft.get(key)
    ]
    why = f"{len(unlike)} differ, {first_of(unlike)}" if unlike else f"{len(of_target)} roles and marks equal"
    return RuleResult(not unlike, why, needed(tokenizer=bool(unlike)))


def _specials(side: Side) -> dict[str, str]:
    tokenizer = side.tokenizer
    named = {role: token for role, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    roles = {role: f"{token} ({tokenizer.convert_tokens_to_ids(token)})" for role, token in named.items()}
    marked = {str(number): token.content for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return roles | marked


def _same_template(target: Side, draft: Side) -> RuleResult:
    """A chat is written for both by the target's template; a draft with another one was trained on other chats."""
    of_target, of_draft = target.tokenizer.chat_template, draft.tokenizer.chat_template
    if of_target == of_draft:
        return RuleResult(True, "none on both" if of_target is None else f"the same {len(of_target):,} characters")
    lengths = [None if found is None else f"{len(found):,} characters" for found in (of_target, of_draft)]
    why = "as long, but not the same" if lengths[0] == lengths[1] else compared("template", *lengths)
    return RuleResult(False, why, needed(tokenizer=True))


def _same_rows(target: Side, draft: Side) -> RuleResult:
    """Input embedding, output layer and config.json, all with the target's padded vocabulary."""
    found = {"embedding": draft.embedding_rows, "output": draft.output_rows, "config.json": draft.vocab_size}
    stated = ", ".join(f"{name} {rows:,}" for name, rows in found.items())
    holds = set(found.values()) == {target.output_rows}
    return RuleResult(holds, f"target {target.output_rows:,}; draft: {stated}", needed(rows=not holds))


def _same_generation(target: Side, draft: Side) -> RuleResult:
    """The same ids end a text, begin one and fill one up."""
    found = {"eos": (sorted(target.ends), sorted(draft.ends))} | {r: _role(target, draft, r) for r in ("bos", "pad")}
    equal, why = all_compared(found)
    return RuleResult(equal, why, needed(ids=not equal))


def _role(target: Side, draft: Side, role: str) -> tuple[int | None, int | None]:
    """Where the target's generation_config.json names no id, a draft's may: what counts is what engines find."""
    if getattr(target.generation, f"{role}_token_id") is None:
        return target.role_id(role), draft.role_id(role)
    return target.named(role), draft.named(role)


def _as_long(target: Side, draft: Side) -> RuleResult:
    """Beyond its context a draft is out of its depth, or (vLLM) not asked; output stays right, the gain is lost."""
    of_target, of_draft = target.context_tokens(), draft.context_tokens()
    return RuleResult(
        of_target is None or of_draft is None or of_draft >= of_target, compared("tokens", of_target, of_draft)
    )


OURS = (
    Rule("every id, the same bytes", "ours", "docs/check.md", _same_bytes),
    Rule("every text, the same ids", "ours", "docs/check.md", _same_cutting),
    Rule("special tokens", "ours", "docs/check.md", _same_specials),
    Rule("chat template", "ours", "docs/check.md", _same_template),
    Rule("rows = padded vocabulary", "ours", "docs/check.md", _same_rows),
    Rule("generation config", "ours", "docs/check.md", _same_generation),
    Rule("context length", "ours", "docs/check.md", _as_long, only_warns=True),
)
