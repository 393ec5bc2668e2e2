"""The words that help and completion know: names of tables that take seconds to import, which a test holds them to."""

from __future__ import annotations

# stages.STAGES, in their order.
STAGES = ("target", "tokenize", "pretrain", "continue", "synthesize", "align", "evaluate")
# cost.devices.DEVICES: those with published figures; `cpu` is measured.
DEVICES = (
    *("a100-80gb", "h100-sxm", "h200", "b200", "l4", "l40s", "rtx-4090", "rtx-5090", "mi300x", "gaudi-2", "gaudi-3"),
    *("arc-155h", "npu-155h", "arc-140v", "npu-258v", "m4-max", "m3-ultra", "ryzen-ai-max-395"),
)
# cost.size.BITS.
BITS = ("bf16", "int8", "int4")
# search.timers.TIMERS.
TIMERS = ("openvino", "transformers")
# export.formats.FORMATS: each with its kinds of weights, the usual one first.
FORMATS = {
    "huggingface": ("bf16", "fp16", "fp32"),
    "openvino": ("int8", "int8_sym", "int4", "int4_sym", "fp16"),
    "gguf": ("q8_0", "q4_0", "f16", "f32"),
}
# bench.engines.ENGINES: each with its kinds of weights, the usual one first.
ENGINES = {
    "openvino": ("int8", "int8_sym", "int4", "int4_sym", "fp16"),
    "transformers": ("fp32", "bf16", "fp16"),
    "llama.cpp": ("q8_0", "q4_0", "f16", "f32"),
}
# play.opening.ENGINES.
PLAYERS = ("transformers", "openvino")
# evaluate.tasks.TASKS, and USUAL: those that are asked where none is named.
TASKS = (
    *("cnn_dailymail", "tinystories", "dolly", "mt-bench"),
    *("spec-bench:mt-bench", "spec-bench:translation", "spec-bench:summarization"),
    *("spec-bench:qa", "spec-bench:math_reasoning", "spec-bench:rag", "humaneval", "gsm8k"),
)
USUAL = ("cnn_dailymail", "tinystories", "dolly", "humaneval")
# precision.Asked.
PRECISIONS = ("auto", "bf16", "fp32")
# Kinds of device that pipeline.usable_device takes.
KINDS = ("auto", "cpu", "cuda", "xpu", "hpu")
