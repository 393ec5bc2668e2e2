"""One side of a pair, read without its weights: configuration, tokenizer, and shapes from the heads of its files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open
from transformers import GenerationConfig, PreTrainedTokenizerFast
from transformers.configuration_utils import PretrainedConfig

from fastdraft.config import TargetPart
from fastdraft.models import target, token_bytes
from fastdraft.models.architecture import is_runnable, vocabulary_tensors
from fastdraft.system.errors import TargetError

INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"
ROLES = ("bos", "eos", "pad")


@dataclass(frozen=True)
class Side:
    """A target or a draft. `shapes`: of every tensor in its weights; empty where it has none that can be read."""

    name: str
    folder: Path
    config: PretrainedConfig
    generation: GenerationConfig
    tokenizer: PreTrainedTokenizerFast
    shapes: dict[str, tuple[int, ...]]

    @property
    def text(self) -> PretrainedConfig:
        """The part of the configuration that is of text; of most models all of it."""
        text: PretrainedConfig = self.config.get_text_config()
        return text

    @property
    def vocab_size(self) -> int:
        """Rows as config.json names them: the padded vocabulary."""
        return int(self.text.vocab_size)

    @property
    def rows_from(self) -> Literal["weights", "config.json"]:
        """Where the numbers of rows were read; config.json where there are no weights."""
        return "weights" if self.shapes else "config.json"

    @cached_property
    def embedding_rows(self) -> int:
        """Rows of the input embedding in the weights; without weights what config.json says."""
        return self._rows(0)

    @cached_property
    def output_rows(self) -> int:
        """Rows of the output layer in the weights; without weights what config.json says."""
        return self._rows(1)

    @cached_property
    def vocabulary_tensors(self) -> tuple[list[str], list[str]]:
        """Input embedding and output layer as the files name them; both the same where tied."""
        named = vocabulary_tensors(self.config)
        embedding, output = ([s for name in names if (s := _stored(name, self.shapes))] for names in named)
        return embedding, output

    @cached_property
    def spelled(self) -> dict[int, bytes]:
        """The bytes that each id of the tokenizer stands for."""
        return token_bytes.spelled(self.tokenizer)

    @cached_property
    def added(self) -> set[int]:
        """Ids that were added to the vocabulary by name: special tokens, and others that are never split."""
        return set(self.tokenizer.added_tokens_decoder)

    @cached_property
    def definition(self) -> dict[str, Any]:
        """How the tokenizer cuts and joins text."""
        return token_bytes.definition(self.tokenizer)

    @cached_property
    def ends(self) -> set[int]:
        """Every id that ends a text: the tokenizer's, the configuration's and the generation configuration's."""
        return {i for source in (self.tokenizer, self.text, self.generation) for i in ids(source.eos_token_id)}

    def role_id(self, role: str) -> int | None:
        """The id that an engine finds for bos, eos or pad: the tokenizer's, else the configuration's first."""
        found = [*ids(getattr(self.tokenizer, f"{role}_token_id")), *ids(getattr(self.text, f"{role}_token_id", None))]
        return found[0] if found else None

    def named(self, role: str) -> int | None:
        """The id of bos or pad that generation_config.json names, else the one that an engine finds."""
        found: int | None = getattr(self.generation, f"{role}_token_id")
        return self.role_id(role) if found is None else found

    def context_tokens(self) -> int | None:
        """The longest text it was made for, where its configuration says so."""
        found = getattr(self.text, "max_position_embeddings", None)
        return found if isinstance(found, int) else None

    def _rows(self, which: int) -> int:
        if not self.shapes:
            return self.vocab_size
        names = self.vocabulary_tensors[which]
        if not names:
            raise TargetError(
                f"the weights in {self.folder} have no {vocabulary_tensors(self.config)[which][0]}\n"
                f"  wanted: a matrix with one row for each id, not quantised\n"
                f"  do: give the model as it was before it was quantised, and check that its download is complete"
            )
        return self.shapes[names[0]][0]


def read(path: str, weights: bool = True) -> Side:
    """A side from a hub id, a folder, or `demo`; weights False: a hub's weights stay there.

    Of a family that transformers does not know nobody can say which weights are the rows: as if there were none.

    TargetError where configuration, tokenizer or the heads of the weights cannot be read.
    """
    return side_of(TargetPart(path=path), weights)


def side_of(part: TargetPart, weights: bool = True) -> Side:
    """The same of a model whose revision, and whether its own code may run, is said too."""
    folder, config = target.folder_of(part, weights), target.open_config(part)
    files = weight_files(folder) if is_runnable(config) else []
    return Side(
        name=part.path,
        folder=folder,
        config=config,
        generation=_generation(folder),
        tokenizer=_working(target.open_tokenizer(part), folder),
        shapes={name: shape for file in files for name, shape in _heads(file).items()},
    )


def ids(found: int | list[int] | None) -> list[int]:
    """What a configuration names: one id, several, or none."""
    return found if isinstance(found, list) else [] if found is None else [found]


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make the model in a folder; none where it has no weights. TargetError: some are gone.

    Not whatever lies there: some models keep the same weights once more under names of another library.
    """
    if not (folder / INDEX).is_file():
        return [folder / WHOLE] if (folder / WHOLE).is_file() else []
    names = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    there = [folder / name for name in names if (folder / name).is_file()]
    if there and len(there) < len(names):
        gone = sorted(set(names) - {path.name for path in there})
        raise TargetError(
            f"{folder} lacks {len(gone)} of the {len(names)} files of weights that {INDEX} names, first {gone[0]}\n"
            f"  do: check that the download is complete"
        )
    return there


def _heads(file: Path) -> dict[str, tuple[int, ...]]:
    """Shape by name; the tensors themselves stay on the disk."""
    try:
        with safe_open(file, framework="pt") as handle:  # type: ignore[no-untyped-call]
            return {name: tuple(handle.get_slice(name).get_shape()) for name in handle.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise TargetError(
            f"the head of {file} cannot be read: {error}\n  do: check that the download is complete"
        ) from error


def _stored(name: str, shapes: dict[str, tuple[int, ...]]) -> str | None:
    """A weight's name in the files: models saved without their head, or inside a larger one, have another prefix."""
    alike = (stored for stored in shapes if name.endswith(f".{stored}") or stored.endswith(f".{name}"))
    return name if name in shapes else next(alike, None)


def _generation(folder: Path) -> GenerationConfig:
    """What generation_config.json says; nothing where there is none."""
    if not (folder / "generation_config.json").is_file():
        return GenerationConfig()
    try:
        return GenerationConfig.from_pretrained(folder)
    except (OSError, ValueError, TypeError) as error:
        raise TargetError(
            f"{folder / 'generation_config.json'} cannot be read: {error}\n  do: fix it, or remove it"
        ) from error


def _working(tokenizer: PreTrainedTokenizerFast, folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer, which can encode; TargetError where the library has put together one that cannot."""
    try:
        tokenizer("a")
    except Exception as error:  # the library raises this very class
        raise TargetError(
            f"the tokenizer in {folder} cannot encode a text: {error}\n"
            f"  do: copy all of the model's tokenizer files there, tokenizer_config.json too: "
            f"without it the family's own tokenizer is taken"
        ) from error
    return tokenizer
