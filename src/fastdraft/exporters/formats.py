"""The table of export formats: how each is written, how its engine opens it, and how well it must agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from fastdraft.exporters.gguf import export_gguf, open_gguf
from fastdraft.exporters.huggingface import export_huggingface, open_huggingface
from fastdraft.exporters.openvino import export_openvino, open_openvino
from fastdraft.exporters.proof import Opened
from fastdraft.system.errors import ExportError
from fastdraft.system.optional_packages import need


class Format(NamedTuple):
    """An export format.

    agreement: by weight precision, the least fraction of greedy tokens that must stay the same; the first is default.
    write: `write(model_folder, new_folder, weights)` returns notes for the model card.
    open: `open(folder, longest_tokens)` opens the export in its engine.
    engines: the first words of the names of the engine rules that the draft must satisfy.
    modules: (module, extra) pairs that it needs.
    """

    agreement: Mapping[str, float]
    write: Callable[[Path, Path, str], list[str]]
    open: Callable[[Path, int], Opened]
    engines: tuple[str, ...]
    modules: tuple[tuple[str, str], ...] = ()

    def ready(self) -> None:
        """MissingExtra if a package that it needs is not installed."""
        for module, extra in self.modules:
            need(module, extra)

    def weights(self, requested: str | None, name: str) -> str:
        """The weight precision; ExportError if this format does not have it."""
        if requested is None:
            return next(iter(self.agreement))
        if requested not in self.agreement:
            raise ExportError(f"{name} has no weights `{requested}`\n  do: choose one of {', '.join(self.agreement)}")
        return requested


def format_named(name: str) -> Format:
    """The format of that name; ExportError if there is none."""
    if name not in FORMATS:
        raise ExportError(f"no format `{name}`\n  do: choose one of {', '.join(FORMATS)}")
    return FORMATS[name]


# Exact weights agree except for near ties; the other bounds are well below the values measured on drafts of 0.6M
# (dev/LOG.md).
FORMATS: dict[str, Format] = {
    "huggingface": Format(
        {"bf16": 0.9, "fp16": 0.98, "fp32": 0.999},
        export_huggingface,
        open_huggingface,
        ("transformers, generate", "vLLM", "SGLang"),
    ),
    "openvino": Format(
        {"int8": 0.9, "int8_sym": 0.9, "int4": 0.5, "int4_sym": 0.5, "fp16": 0.98},
        export_openvino,
        open_openvino,
        ("OpenVINO GenAI",),
        tuple((module, "openvino") for module in ("optimum.intel", "nncf", "openvino_tokenizers", "openvino_genai")),
    ),
    "gguf": Format(
        {"q8_0": 0.9, "q4_0": 0.6, "f16": 0.98, "f32": 0.999},
        export_gguf,
        open_gguf,
        ("llama.cpp",),
        (("gguf", "llamacpp"), ("llama_cpp", "llamacpp")),
    ),
}
