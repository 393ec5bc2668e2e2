"""The rule by which each engine accepts or refuses a draft, exactly as its source states it.

A rule sees what the engine sees: the padded vocabulary is config.json's `vocab_size`, ids are those that the engine
reads, and a GGUF file is what llama.cpp's converter would write from the folder.
"""

from __future__ import annotations

from fastdraft.compatibility.rule import Rule, RuleResult, all_compared, compared, first_of, needed
from fastdraft.models.model_files import ROLES, ModelFiles
from fastdraft.models.token_bytes import encode

# OpenVINO GenAI encodes an English question of its own with both tokenizers and compares the lengths. This question
# replaces it: on all 156 pairs of 13 published tokenizers the verdict equals the engine's own (2026.4.1, when its
# pipeline is created). Four other questions gave another verdict on 4 to 8 pairs.
QUESTION = "Would somebody kindly explain SpeculativeDecoding.NET to me?"
LLAMA_CPP_MAX_SIZE_DIFFERENCE, LLAMA_CPP_FIRST_ID = 128, 5
# The vocabulary type that llama.cpp's converter writes, by the model type of the tokenizer.
VOCABULARY_TYPES = {"BPE": "BPE", "Unigram": "UGM", "WordPiece": "WPM"}


def _same_vocab_size(target: ModelFiles, draft: ModelFiles) -> RuleResult:
    """transformers and vLLM compare nothing else."""
    equal = target.vocab_size == draft.vocab_size
    why = compared("vocab_size", f"{target.vocab_size:,}", f"{draft.vocab_size:,}")
    return RuleResult(equal, why, needed(rows=not equal))


def _transformers_pipeline(target: ModelFiles, draft: ModelFiles) -> RuleResult:
    """If special ids differ, the pipeline passes the draft's tokenizer on; `generate` refuses it if sizes are equal."""
    size = _same_vocab_size(target, draft)
    ids_by_role = {role: [getattr(files.text, f"{role}_token_id", None) for files in (target, draft)] for role in ROLES}
    equal, ids = all_compared(ids_by_role)
    why = f"{size.why}; in config.json {ids}"
    return RuleResult(size.holds and equal, why, needed(rows=not size.holds, ids=not equal))


def _sglang(target: ModelFiles, draft: ModelFiles) -> RuleResult:
    """Equal sizes, and equal tables from token text to id."""
    size = _same_vocab_size(target, draft)
    target_ids, draft_ids = target.tokenizer.get_vocab(), draft.tokenizer.get_vocab()
    by_id = sorted((target_ids | draft_ids).items(), key=lambda pair: pair[1])
    differing = [repr(token) for token, _ in by_id if target_ids.get(token) != draft_ids.get(token)]
    texts = f"{len(differing):,} texts differ, {first_of(differing)}" if differing else "texts equal"
    repair_kinds = needed(rows=not size.holds, tokenizer=bool(differing))
    return RuleResult(size.holds and not differing, f"{size.why}; {texts}", repair_kinds)


def _llama_cpp(target: ModelFiles, draft: ModelFiles) -> RuleResult:
    """Type of vocabulary, added bos and eos, sizes that differ little, and the text of every id from the sixth on."""
    faults = [*_differing_types(target, draft), *_differing_additions(target, draft), *_differing_texts(target, draft)]
    far_apart = abs(target.vocab_size - draft.vocab_size) > LLAMA_CPP_MAX_SIZE_DIFFERENCE
    sizes = compared("sizes", f"{target.vocab_size:,}", f"{draft.vocab_size:,}")
    limit = f" (at most {LLAMA_CPP_MAX_SIZE_DIFFERENCE} apart)" if target.vocab_size != draft.vocab_size else ""
    why = "; ".join([sizes + limit, *(faults or ["kind, added bos and eos, texts equal"])])
    return RuleResult(not faults and not far_apart, why, needed(rows=far_apart, tokenizer=bool(faults)))


def _differing_types(target: ModelFiles, draft: ModelFiles) -> list[str]:
    types = _vocabulary_type(target), _vocabulary_type(draft)
    return [compared("kind", *types)] if types[0] != types[1] else []


def _vocabulary_type(files: ModelFiles) -> str:
    """A BPE with byte fallback is a sentencepiece vocabulary to llama.cpp."""
    model = files.definition["model"]
    return "SPM" if model.get("byte_fallback") else VOCABULARY_TYPES.get(model["type"], model["type"])


def _differing_additions(target: ModelFiles, draft: ModelFiles) -> list[str]:
    """Since April 2026 llama.cpp compares the ids of bos and eos only if they are added to texts."""
    ids_by_role = {role: [_added_id(files, role) for files in (target, draft)] for role in ("bos", "eos")}
    return [compared(f"added {role}", *pair) for role, pair in ids_by_role.items() if pair[0] != pair[1]]


def _added_id(files: ModelFiles, role: str) -> int | None:
    """The id that the tokenizer adds before (bos) or after (eos) a text; None if it adds none."""
    ids = encode(files.tokenizer, "a")
    added = ids[:1] if role == "bos" else ids[-1:]
    role_id = files.role_id(role)
    return role_id if added == [role_id] else None


def _differing_texts(target: ModelFiles, draft: ModelFiles) -> list[str]:
    """Ids below both sizes with different texts. An id without a token gets the same numbered filler in both files."""
    target_texts, draft_texts = (
        {number: token for token, number in files.tokenizer.get_vocab().items()} for files in (target, draft)
    )
    in_both = range(LLAMA_CPP_FIRST_ID, min(target.vocab_size, draft.vocab_size))
    differing = [
        number
        for number in sorted(target_texts.keys() | draft_texts.keys())
        if number in in_both and target_texts.get(number) != draft_texts.get(number)
    ]
    if not differing:
        return []
    first = (repr(texts[differing[0]]) if differing[0] in texts else None for texts in (target_texts, draft_texts))
    return [f"{len(differing):,} {compared(f'texts differ, {differing[0]}', *first)}"]


def _openvino(target: ModelFiles, draft: ModelFiles) -> RuleResult:
    """The length of an encoded question, and three ids: another tokenizer can pass."""
    lengths: list[int | None] = [len(encode(files.tokenizer, QUESTION)) for files in (target, draft)]
    ids_by_role = {role: [_openvino_id(files, role) for files in (target, draft)] for role in ROLES}
    equal, why = all_compared({"tokens of a question": lengths} | ids_by_role)
    return RuleResult(equal, why, needed(tokenizer=not equal, ids=not equal))


def _openvino_id(files: ModelFiles, role: str) -> int | None:
    """Without a padding id the engine pads with the end-of-text id."""
    role_id = files.role_id(role)
    return files.role_id("eos") if role_id is None and role == "pad" else role_id


def _openvino_npu(target: ModelFiles, draft: ModelFiles) -> RuleResult:
    """The rule of other devices, and logits of equal width."""
    other_devices, equal = _openvino(target, draft), target.output_rows == draft.output_rows
    why = f"{compared('logits', f'{target.output_rows:,}', f'{draft.output_rows:,}')}; {other_devices.why}"
    repair_kinds = (*needed(rows=not equal), *other_devices.repair_kinds)
    return RuleResult(other_devices.holds and equal, why, repair_kinds)


GENAI = "openvino.genai, src/cpp/src/speculative_decoding"
ENGINE_RULES = (
    Rule("transformers, generate", "5.5.4", "transformers/generation/utils.py", _same_vocab_size),
    Rule("transformers, pipeline", "5.5.4", "transformers/pipelines/base.py", _transformers_pipeline),
    Rule("vLLM, draft_model", "002e77c, 2026", "vllm/config/speculative.py", _same_vocab_size),
    Rule("SGLang, STANDALONE", "PR 23838, 2026", "sglang/srt/speculative/standalone_worker_v2.py", _sglang),
    Rule("llama.cpp, -md", "001d906, 2026", "llama.cpp, common/speculative.cpp", _llama_cpp),
    Rule("OpenVINO GenAI", "2026.4", f"{GENAI}/continuous_batching/fast_draft_strategy.cpp", _openvino),
    Rule("OpenVINO GenAI, NPU", "2026.4", f"{GENAI}/stateful/fast_draft_strategy.cpp", _openvino_npu),
)
