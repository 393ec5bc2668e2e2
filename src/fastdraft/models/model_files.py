"""A target or a draft, read without its weights: configuration, tokenizer and the shapes of its tensors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from transformers import GenerationConfig, PreTrainedTokenizerFast
from transformers.configuration_utils import PretrainedConfig

from fastdraft.config import TargetPart
from fastdraft.models import pretrained, token_bytes
from fastdraft.models.architecture import is_runnable, vocabulary_tensors
from fastdraft.models.weight_files import headers, weight_files
from fastdraft.system.errors import TargetError

ROLES = ("bos", "eos", "pad")


@dataclass(frozen=True)
class ModelFiles:
    """The files of a target or a draft. `shapes`: of every tensor; empty if there are no weights that can be read."""

    name: str
    folder: Path
    config: PretrainedConfig
    generation: GenerationConfig
    tokenizer: PreTrainedTokenizerFast
    shapes: dict[str, tuple[int, ...]]

    @property
    def text(self) -> PretrainedConfig:
        """The configuration of the text part; for most models the whole configuration."""
        text: PretrainedConfig = self.config.get_text_config()
        return text

    @property
    def vocab_size(self) -> int:
        """The padded vocabulary, as config.json states it."""
        return int(self.text.vocab_size)

    @property
    def rows_from(self) -> Literal["weights", "config.json"]:
        """Where the numbers of rows come from."""
        return "weights" if self.shapes else "config.json"

    @cached_property
    def embedding_rows(self) -> int:
        """Rows of the input embedding in the weights; without weights those of config.json."""
        return self._rows(0)

    @cached_property
    def output_rows(self) -> int:
        """Rows of the output layer in the weights; without weights those of config.json."""
        return self._rows(1)

    @cached_property
    def vocabulary_tensors(self) -> tuple[list[str], list[str]]:
        """The names of input embedding and output layer in the files; equal if they are tied."""
        embedding, output = (
            [stored for name in names if (stored := _stored(name, self.shapes))]
            for names in vocabulary_tensors(self.config)
        )
        return embedding, output

    @cached_property
    def id_bytes(self) -> dict[int, bytes]:
        """The bytes that each id of the tokenizer stands for."""
        return token_bytes.id_bytes(self.tokenizer)

    @cached_property
    def added_ids(self) -> set[int]:
        """The ids of added tokens: special tokens, and others that are never split."""
        return set(self.tokenizer.added_tokens_decoder)

    @cached_property
    def definition(self) -> dict[str, Any]:
        """How the tokenizer splits and joins text."""
        return token_bytes.definition(self.tokenizer)

    @cached_property
    def eos_ids(self) -> set[int]:
        """Every end-of-text id of the tokenizer, the configuration and the generation configuration."""
        return {i for source in (self.tokenizer, self.text, self.generation) for i in _ids(source.eos_token_id)}

    def role_id(self, role: str) -> int | None:
        """The id that an engine uses for bos, eos or pad: the tokenizer's, otherwise the configuration's first."""
        sources = (self.tokenizer, self.text)
        return next((i for source in sources for i in _ids(getattr(source, f"{role}_token_id", None))), None)

    def generation_id(self, role: str) -> int | None:
        """The id of bos or pad in generation_config.json, otherwise `role_id`."""
        stated: int | None = getattr(self.generation, f"{role}_token_id")
        return self.role_id(role) if stated is None else stated

    def context_tokens(self) -> int | None:
        """The context length; None if the configuration does not state it."""
        context = getattr(self.text, "max_position_embeddings", None)
        return context if isinstance(context, int) else None

    def _rows(self, which: int) -> int:
        if not self.shapes:
            return self.vocab_size
        names = self.vocabulary_tensors[which]
        if not names:
            raise TargetError(
                f"the weights in {self.folder} have no {vocabulary_tensors(self.config)[which][0]}\n"
                f"  wanted: a matrix with one row for each id, not quantised\n"
                f"  do: use the model before quantisation, and check that its download is complete"
            )
        return self.shapes[names[0]][0]


def read(model: pretrained.Model, weights: bool = True) -> ModelFiles:
    """The files of a model; with `weights` False a hub model's weights are not downloaded.

    `shapes` stays empty for a family unknown to transformers: nothing says which of its tensors has a row per id.
    Raises TargetError if configuration, tokenizer or the headers of the weights cannot be read.
    """
    folder, config = pretrained.folder_of(model, weights), pretrained.open_config(model)
    tokenizer = pretrained.open_tokenizer(model)
    files = weight_files(folder) if is_runnable(config) else []
    return ModelFiles(
        name=model.path if isinstance(model, TargetPart) else str(model),
        folder=folder,
        config=config,
        generation=pretrained.open_generation_config(folder),
        tokenizer=tokenizer,
        shapes={name: header.shape for file in files for name, header in headers(file).items()},
    )


def _ids(stated: int | list[int] | None) -> list[int]:
    """A configuration states one id, several, or none."""
    return stated if isinstance(stated, list) else [] if stated is None else [stated]


def _stored(name: str, shapes: dict[str, tuple[int, ...]]) -> str | None:
    """A weight's name in the files: a model saved without its head, or inside a larger one, has another prefix."""
    with_other_prefix = (stored for stored in shapes if name.endswith(f".{stored}") or stored.endswith(f".{name}"))
    return name if name in shapes else next(with_other_prefix, None)
