"""The rule by which each engine takes or refuses a draft, as its own source has it: no more, and no less.

Judged by what an engine is given: the padded vocabulary is config.json's `vocab_size`, ids are those that the engine
finds, a GGUF file is what llama.cpp's converter would make of the folder.
"""

from __future__ import annotations

from fastdraft.compatibility.rule import Rule, RuleResult, all_compared, compared, first_of, needed
from fastdraft.models.model_files import ROLES, Side
from fastdraft.models.token_bytes import encode

# OpenVINO GenAI encodes one English question of its own with both tokenizers and compares the lengths. This one stands
# in for it: on all 156 pairs of 13 published tokenizers the verdict was that of the engine itself (2026.4.1, when its
# pipeline is made); with four other questions it was not on 4 to 8 of them.
QUESTION = "Would somebody kindly explain SpeculativeDecoding.NET to me?"
LLAMA_CPP_SIZES_DIFFER, LLAMA_CPP_FIRST_ID = 128, 5
# The kind of vocabulary that llama.cpp's converter writes, by tokenizers' name of the model.
KINDS = {"BPE": "BPE", "Unigram": "UGM", "WordPiece": "WPM"}


def _same_vocab_size(target: Side, draft: Side) -> RuleResult:
    """transformers and vLLM look at nothing else."""
    sizes = target.vocab_size, draft.vocab_size
    return RuleResult(
        sizes[0] == sizes[1], compared("vocab_size", *(f"{n:,}" for n in sizes)), needed(rows=sizes[0] != sizes[1])
    )


def _transformers_pipeline(target: Side, draft: Side) -> RuleResult:
    """With other ids it hands the draft's tokenizer on, which `generate` refuses where the sizes are equal."""
    size = _same_vocab_size(target, draft)
    named = {role: [getattr(side.text, f"{role}_token_id", None) for side in (target, draft)] for role in ROLES}
    equal, ids = all_compared(named)
    why = f"{size.why}; in config.json {ids}"
    return RuleResult(size.holds and equal, why, needed(rows=not size.holds, ids=not equal))


def _sglang(target: Side, draft: Side) -> RuleResult:
    """The sizes, and the whole table of token texts."""
    size, of_target, of_draft = (
        _same_vocab_size(target, draft),
        target.tokenizer.get_vocab(),
        draft.tokenizer.get_vocab(),
    )
    every = sorted((of_target | of_draft).items(), key=lambda pair: pair[1])
    unlike = [token for token, _ in every if of_target.get(token) != of_draft.get(token)]
    texts = f"{len(unlike):,} texts differ, {first_of([repr(token) for token in unlike])}" if unlike else "texts equal"
    repair_kinds = needed(rows=not size.holds, tokenizer=bool(unlike))
    return RuleResult(size.holds and not unlike, f"{size.why}; {texts}", repair_kinds)


def _llama_cpp(target: Side, draft: Side) -> RuleResult:
    """Kind of vocabulary, added bos and eos, sizes that differ little, and the text of each id from the sixth on."""
    faults = [*_kinds(target, draft), *_additions(target, draft), *_texts(target, draft)]
    far = abs(target.vocab_size - draft.vocab_size) > LLAMA_CPP_SIZES_DIFFER
    sizes = compared("sizes", f"{target.vocab_size:,}", f"{draft.vocab_size:,}")
    limit = f" (at most {LLAMA_CPP_SIZES_DIFFER} apart)" if target.vocab_size != draft.vocab_size else ""
    why = "; ".join([sizes + limit, *(faults or ["kind, added bos and eos, texts equal"])])
    return RuleResult(not faults and not far, why, needed(rows=far, tokenizer=bool(faults)))


def _openvino(target: Side, draft: Side) -> RuleResult:
    """The length of an encoded question, and three ids: another tokenizer can pass."""
    long: list[int | None] = [len(encode(side.tokenizer, QUESTION)) for side in (target, draft)]
    named = {role: [_openvino_id(side, role) for side in (target, draft)] for role in ROLES}
    equal, why = all_compared({"tokens of a question": long} | named)
    return RuleResult(equal, why, needed(tokenizer=not equal, ids=not equal))


def _openvino_npu(target: Side, draft: Side) -> RuleResult:
    """As on other devices, and logits of equal width."""
    found, wide = _openvino(target, draft), (target.output_rows, draft.output_rows)
    repair_kinds = (*needed(rows=wide[0] != wide[1]), *found.repair_kinds)
    why = f"{compared('logits', *(f'{n:,}' for n in wide))}; {found.why}"
    return RuleResult(found.holds and wide[0] == wide[1], why, repair_kinds)


def _kinds(target: Side, draft: Side) -> list[str]:
    one, other = _kind(target), _kind(draft)
    return [] if one == other else [compared("kind", one, other)]


def _kind(side: Side) -> str:
    """A BPE that spells unknown text in bytes is a sentencepiece one to llama.cpp."""
    model = side.definition["model"]
    return "SPM" if model.get("byte_fallback") else KINDS.get(model["type"], model["type"])


def _additions(target: Side, draft: Side) -> list[str]:
    """Since April 2026 the ids themselves matter only where they are added."""
    places = (("bos", slice(1)), ("eos", slice(-1, None)))
    found = {role: [_added(side, role, place) for side in (target, draft)] for role, place in places}
    return [compared(f"added {role}", *both) for role, both in found.items() if both[0] != both[1]]


def _added(side: Side, role: str, place: slice) -> int | None:
    """The id that the tokenizer sets before (bos) or after (eos) a text by itself."""
    named = side.role_id(role)
    return named if encode(side.tokenizer, "a")[place] == [named] else None


def _texts(target: Side, draft: Side) -> list[str]:
    """Ids below both sizes whose texts differ; an id without a token is a numbered filler, the same on both sides."""
    of_target, of_draft = (
        {number: token for token, number in side.tokenizer.get_vocab().items()} for side in (target, draft)
    )
    both = range(LLAMA_CPP_FIRST_ID, min(target.vocab_size, draft.vocab_size))
    unlike = [
        n for n in sorted(of_target.keys() | of_draft.keys()) if n in both and of_target.get(n) != of_draft.get(n)
    ]
    if not unlike:
        return []
    shown = (repr(texts[unlike[0]]) if unlike[0] in texts else None for texts in (of_target, of_draft))
    return [f"{len(unlike):,} {compared(f'texts differ, {unlike[0]}', *shown)}"]


def _openvino_id(side: Side, role: str) -> int | None:
    """Where nothing names a padding id, the end of a text is it."""
    found = side.role_id(role)
    return side.role_id("eos") if found is None and role == "pad" else found


GENAI = "openvino.genai, src/cpp/src/speculative_decoding"
ENGINES = (
    Rule("transformers, generate", "5.0.0", "transformers/generation/utils.py", _same_vocab_size),
    Rule("transformers, pipeline", "5.0.0", "transformers/pipelines/base.py", _transformers_pipeline),
    Rule("vLLM, draft_model", "002e77c, 2026", "vllm/config/speculative.py", _same_vocab_size),
    Rule("SGLang, STANDALONE", "PR 23838, 2026", "sglang/srt/speculative/standalone_worker_v2.py", _sglang),
    Rule("llama.cpp, -md", "001d906, 2026", "llama.cpp, common/speculative.cpp", _llama_cpp),
    Rule("OpenVINO GenAI", "2026.4", f"{GENAI}/continuous_batching/fast_draft_strategy.cpp", _openvino),
    Rule("OpenVINO GenAI, NPU", "2026.4", f"{GENAI}/stateful/fast_draft_strategy.cpp", _openvino_npu),
)
