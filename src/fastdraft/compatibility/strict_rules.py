"""FastDraft's own rules, stricter than any engine's: a draft that satisfies them works wherever its target does."""

from __future__ import annotations

from fastdraft.compatibility.rule import Rule, RuleResult, all_compared, compared, first_of, needed
from fastdraft.models.model_files import ModelFiles
from fastdraft.models.token_bytes import PROBES, encode, readable


def _same_bytes(target: ModelFiles, draft: ModelFiles) -> RuleResult:
    """An id that stands for two texts is accepted by chance, and written as the target's text."""
    in_target, in_draft = target.id_bytes, draft.id_bytes
    differing = [n for n in sorted(in_target.keys() | in_draft.keys()) if in_target.get(n) != in_draft.get(n)]
    sizes = compared("ids", f"{len(in_target):,}", f"{len(in_draft):,}")
    if not differing:
        return RuleResult(True, f"{sizes}, each the same bytes")
    n = differing[0]
    first = compared(f"differ, {n}", readable(in_target.get(n)), readable(in_draft.get(n)))
    return RuleResult(False, f"{sizes}; {len(differing):,} {first}", needed(tokenizer=True))


def _same_encoding(target: ModelFiles, draft: ModelFiles) -> RuleResult:
    """Equal definitions encode every text alike; probe texts also see what happens outside the definition."""
    parts = [part for part, value in target.definition.items() if value != draft.definition[part]]
    texts = (*PROBES, *(f"a{token}b" for token in target.tokenizer.all_special_tokens))
    differing = [repr(text) for text in texts if encode(target.tokenizer, text) != encode(draft.tokenizer, text)]
    definition = f"unlike: {', '.join(parts)}" if parts else f"{len(target.definition)} parts of its definition equal"
    first = f", {first_of(differing)}" if differing else ""
    why = f"{definition}; {len(differing)} of {len(texts)} probe texts encoded differently{first}"
    holds = not parts and not differing
    return RuleResult(holds, why, needed(tokenizer=not holds))


def _same_specials(target: ModelFiles, draft: ModelFiles) -> RuleResult:
    """Roles with their tokens and ids, and every token that is marked as special."""
    in_target, in_draft = _specials(target), _specials(draft)
    differing = [
        compared(key, in_target.get(key), in_draft.get(key))
        for key in in_target | in_draft
        if in_target.get(key) != in_draft.get(key)
    ]
    why = f"{len(differing)} differ, {first_of(differing)}" if differing else f"{len(in_target)} roles and marks equal"
    return RuleResult(not differing, why, needed(tokenizer=bool(differing)))


def _specials(files: ModelFiles) -> dict[str, str]:
    tokenizer = files.tokenizer
    tokens = {role: token for role, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    roles = {role: f"{token} ({tokenizer.convert_tokens_to_ids(token)})" for role, token in tokens.items()}
    marked = {str(number): token.content for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return roles | marked


def _same_template(target: ModelFiles, draft: ModelFiles) -> RuleResult:
    """The target's template formats chats for both; a draft with another template was trained on other chats."""
    templates = target.tokenizer.chat_template, draft.tokenizer.chat_template
    lengths = [None if template is None else f"{len(template):,} characters" for template in templates]
    if templates[0] == templates[1]:
        return RuleResult(True, "none on both" if lengths[0] is None else f"the same {lengths[0]}")
    why = "equally long, but not the same" if lengths[0] == lengths[1] else compared("template", *lengths)
    return RuleResult(False, why, needed(tokenizer=True))


def _same_rows(target: ModelFiles, draft: ModelFiles) -> RuleResult:
    """Input embedding, output layer and config.json all have the target's padded vocabulary."""
    rows_by_place = {"embedding": draft.embedding_rows, "output": draft.output_rows, "config.json": draft.vocab_size}
    stated = ", ".join(f"{place} {rows:,}" for place, rows in rows_by_place.items())
    holds = set(rows_by_place.values()) == {target.output_rows}
    return RuleResult(holds, f"target {target.output_rows:,}; draft: {stated}", needed(rows=not holds))


def _same_generation(target: ModelFiles, draft: ModelFiles) -> RuleResult:
    """The same ids end a text, begin one and pad one."""
    figures: dict[str, tuple[object, object]] = {"eos": (sorted(target.eos_ids), sorted(draft.eos_ids))}
    for role in ("bos", "pad"):
        # If the target's generation_config.json has no such id, the draft's may have one: engines use `role_id`.
        stated = getattr(target.generation, f"{role}_token_id") is not None
        figures[role] = (
            (target.generation_id(role), draft.generation_id(role))
            if stated
            else (target.role_id(role), draft.role_id(role))
        )
    equal, why = all_compared(figures)
    return RuleResult(equal, why, needed(ids=not equal))


def _context_is_as_long(target: ModelFiles, draft: ModelFiles) -> RuleResult:
    """Beyond its context a draft predicts badly or, in vLLM, is not used: the output stays right, the gain is lost."""
    target_tokens, draft_tokens = target.context_tokens(), draft.context_tokens()
    holds = target_tokens is None or draft_tokens is None or draft_tokens >= target_tokens
    return RuleResult(holds, compared("tokens", target_tokens, draft_tokens))


STRICT_RULES = (
    Rule("every id, the same bytes", "FastDraft", "docs/check.md", _same_bytes),
    Rule("every text, the same ids", "FastDraft", "docs/check.md", _same_encoding),
    Rule("special tokens", "FastDraft", "docs/check.md", _same_specials),
    Rule("chat template", "FastDraft", "docs/check.md", _same_template),
    Rule("rows = padded vocabulary", "FastDraft", "docs/check.md", _same_rows),
    Rule("generation config", "FastDraft", "docs/check.md", _same_generation),
    Rule("context length", "FastDraft", "docs/check.md", _context_is_as_long, only_warns=True),
)
