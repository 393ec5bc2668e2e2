"""Open a target: the packaged one, a local folder, or a hub id, always by way of files in a folder."""

from __future__ import annotations

from importlib import resources
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar

import torch
import xxhash
from safetensors import SafetensorError
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    __version__,
)
from transformers.configuration_utils import PretrainedConfig
from transformers.utils.logging import disable_progress_bar

from fastdraft.config import TargetPart
from fastdraft.models.architecture import class_of, is_runnable, read_config, writes_text
from fastdraft.models.architecture import counts as counts
from fastdraft.models.architecture import parameters as parameters
from fastdraft.models.architecture import vocabulary_tensors as vocabulary_tensors
from fastdraft.models.hub import commit_of, fetched, licence_of
from fastdraft.system import precision
from fastdraft.system.cards import Card
from fastdraft.system.errors import TargetError, VocabularyMismatch
from fastdraft.system.precision import Asked, Precision
from fastdraft.system.progress import suppressed_logs

PICKLED = (".bin", ".pt", ".pth", ".ckpt")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
)


# transformers 5.0 takes every tokenizer of more than 100,000 ids in a local folder for one of Mistral's first ones, of
# a wrong pattern, unless config.json names the version that wrote it, and not 4.57.3: it looks at the family only where
# an older version is named. Of these families what it then says may be so, of all others it is false.
MISTRAL = ("mistral", "mistral3", "voxtral", "ministral", "pixtral")
OF_MISTRAL = "with an incorrect regex pattern"


class TargetCard(Card):
    """What a draft must know of its target. Sizes in rows and tokens; `digest` changes when any file of it does.

    licence: in the hub's words, as the recipe or the target's README.md says it; None where neither does.
    commit: of a model on the hub the one that was read, whatever branch or tag the recipe names.
    """

    kind: ClassVar[str] = "target"
    name: str
    family: str
    parameters: int
    vocab_rows: int
    tokenizer_tokens: int
    context_tokens: int
    bos_id: int | None
    eos_ids: tuple[int, ...]
    adds_bos: bool
    digest: str
    licence: str | None = None
    commit: str | None = None


def quiet() -> None:
    """No bars of transformers' own while weights are read and written: ours show the long work."""
    disable_progress_bar()


def folder_of(part: TargetPart, weights: bool = True) -> Path:
    """The folder that holds the target's files, fetched from the hub where it is not a local one.

    A path to a config.json means the folder it is in. weights False: what is fetched is fetched without them.
    TargetError where there is no such folder, or only pickled weights in it that the user has not asked for.
    """
    if part.path == "demo":
        return Path(str(resources.files("fastdraft.demo").joinpath("target")))
    local = Path(part.path).expanduser()
    folder = local if local.exists() or part.path.startswith((".", "/", "~")) else _fetched(part, weights)
    folder = folder.parent if folder.name == "config.json" else folder
    if not (folder / "config.json").is_file():
        raise TargetError(f"no config.json in {folder}\n  do: give the folder of a model, a hub id, or `demo`")
    # An OpenVINO export's openvino_model.bin is no pickle.
    files = [file for file in folder.iterdir() if not file.name.startswith("openvino_")]
    found = [file for file in files if file.suffix in (".safetensors", *PICKLED)]
    if found and not part.allow_pickle and all(file.suffix in PICKLED for file in found):
        raise TargetError(
            f"{folder} has pickled weights only ({found[0].name}), which can run code when they are loaded\n"
            f"  wanted: *.safetensors\n  do: convert them, or set target.allow_pickle=true if you trust their maker"
        )
    return folder


def card(part: TargetPart, weights: bool = True) -> dict[str, object]:
    """All fields of a TargetCard but its key and cost.

    weights False: what is fetched is fetched without them, and the digest is of the other files alone. TargetError
    where config or tokenizer cannot be read; VocabularyMismatch where they do not fit together.
    """
    folder = folder_of(part, weights)
    config = open_config(part)
    if not is_runnable(config):
        raise TargetError(
            f"{folder / 'config.json'} is of family `{config.model_type}`, which transformers {__version__} cannot "
            f"run\n  wanted: a family that it knows\n"
            f"  do: install a newer transformers, or set target.trust_remote_code=true if the model brings its own code"
        )
    tokenizer, text = open_tokenizer(part), config.get_text_config()
    _check_rows(folder, tokenizer, text.vocab_size)
    return {
        "name": part.path,
        "family": text.model_type,
        "parameters": parameters(config),
        "vocab_rows": text.vocab_size,
        "tokenizer_tokens": len(tokenizer),
        "context_tokens": _context_tokens(folder, text),
        "bos_id": tokenizer.bos_token_id,
        "eos_ids": _eos_ids(folder, config, tokenizer),
        "adds_bos": tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id],
        "digest": digest(part, weights),
        "licence": part.licence or licence_of(folder),
        "commit": commit_of(folder),
    }


def digest(part: TargetPart, weights: bool = True) -> str:
    """Of config and tokenizer all bytes, of weights the name, size, head and tail: gigabytes are not read for it."""
    found = xxhash.xxh3_64()
    for file in sorted(folder_of(part, weights).iterdir()):
        if file.name in ("config.json", "generation_config.json", *TOKENIZER_FILES):
            found.update(file.name.encode() + file.read_bytes())
        elif file.suffix in (".safetensors", *PICKLED):
            with file.open("rb") as handle:
                head = handle.read(1 << 20)
                handle.seek(max(file.stat().st_size - (1 << 20), 0))
                found.update(f"{file.name}:{file.stat().st_size}".encode() + head + handle.read(1 << 20))
    return str(found.hexdigest())


def open_config(part: TargetPart) -> PretrainedConfig:
    """The target's configuration; TargetError where it is not one of a causal language model.

    That of a family which transformers does not know is a plain PretrainedConfig: enough for a shape.
    """
    folder = folder_of(part, weights=False)
    try:
        config = read_config(folder, part.trust_remote_code)
    except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
        said = str(error).partition(" Should have a `model_type`")[0]  # what follows there are 400 names of families
        raise TargetError(f"{folder / 'config.json'} cannot be read: {said}\n  do: check the file") from error
    if not writes_text(config):
        raise TargetError(
            f"{folder / 'config.json'} describes a `{config.model_type}`, which writes no text from left to right\n"
            f"  wanted: a causal language model (decoder only)\n  do: choose another target"
        )
    return config


def stored_dtype(part: TargetPart) -> torch.dtype:
    """What the configuration says that the weights are stored in; float32 where it does not."""
    config = open_config(part)
    found = config.dtype or config.get_text_config().dtype
    return found if isinstance(found, torch.dtype) else torch.float32


def precision_of(part: TargetPart, asked: Asked, device: torch.device) -> Precision:
    """What the target computes in on a device; `auto` never rounds weights that are stored in fp32."""
    found = precision.choose(asked, device)
    if asked == "auto" and found.name == "bf16" and stored_dtype(part).itemsize > 2:
        return Precision(name="fp32", reason="the target's weights are stored in fp32")
    return found


def open_tokenizer(part: TargetPart) -> PreTrainedTokenizerFast:
    """The target's tokenizer, which must be a fast one; TargetError where there is none."""
    folder = folder_of(part, weights=False)
    try:
        with suppressed_logs("transformers", *false_alarms(folder)):
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=part.trust_remote_code)
    except (ValueError, OSError, KeyError, TypeError, ImportError) as error:
        # Without any file of a tokenizer the last resort fails for want of an optional package, and says that.
        raise TargetError(
            f"no tokenizer can be read in {folder}: {_first_line(error)}\n"
            f"  wanted: {', '.join(TOKENIZER_FILES[:3])}\n  do: copy the model's tokenizer files there"
        ) from error
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        # Where the folder has no file of a tokenizer, transformers 5.0 makes the family's own, without any text in it.
        raise TargetError(
            f"the tokenizer in {folder} knows no text: only {', '.join(tokenizer.all_special_tokens)}\n"
            f"  wanted: {', '.join(TOKENIZER_FILES[:3])}\n  do: copy the model's tokenizer files there"
        )
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise TargetError(f"the tokenizer in {folder} has no fast form\n  do: convert it to tokenizer.json")
    return tokenizer


def false_alarms(folder: Path) -> tuple[str, ...]:
    """What transformers' log says of the tokenizer in a folder and is not so."""
    family = PretrainedConfig.get_config_dict(folder)[0].get("model_type")
    return () if family in MISTRAL else (OF_MISTRAL,)


def open_model(part: TargetPart, device: torch.device, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The target itself, ready to answer; TargetError where its weights are missing or do not fit its config."""
    model = load(folder_of(part), dtype, part.trust_remote_code, part.allow_pickle)
    opened: PreTrainedModel = model.to(device).eval().requires_grad_(False)  # type: ignore[arg-type]
    return opened


def load(
    folder: Path, dtype: torch.dtype, trust_remote_code: bool = False, allow_pickle: bool = False
) -> PreTrainedModel:
    """The model in a folder; TargetError where its weights are missing, damaged, or do not fit its config."""
    try:
        config = read_config(folder, trust_remote_code)
        loaded: Any = class_of(config).from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            use_safetensors=None if allow_pickle else True,
            output_loading_info=True,
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise TargetError(
            f"the weights in {folder} cannot be loaded: {error}\n  do: check that the download is complete"
        ) from error
    model: PreTrainedModel = loaded[0]
    if absent := sorted(loaded[1]["missing_keys"]):
        raise TargetError(
            f"the weights in {folder} lack {len(absent)} of the model's tensors, first {absent[0]}\n"
            f"  do: check that the download is complete, and that config.json belongs to it"
        )
    return model


def cache_name(model: PreTrainedModel) -> str:
    """What this model's forward, and its output, call the cache: `cache` or, before transformers renamed it,
    `past_key_values`, which newer releases warn about and 5.40 removes.

    Delete this when the oldest transformers that pyproject.toml allows has `cache`.
    """
    return "cache" if "cache" in signature(model.forward).parameters else "past_key_values"


def _fetched(part: TargetPart, weights: bool) -> Path:
    patterns = ["*.json", "*.model", "*.txt", "*.jinja", "README.md", "LICENSE*", "USE_POLICY*"]
    patterns += ["*.safetensors"] if weights else []
    patterns += ["*.bin"] if weights and part.allow_pickle else []
    patterns += ["*.py"] if part.trust_remote_code else []
    return fetched(part.path, part.revision, patterns)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _check_rows(folder: Path, tokenizer: PreTrainedTokenizerFast, rows: int) -> None:
    """VocabularyMismatch unless the embedding has a row for every id, those of added tokens among them."""
    beyond = sorted((i, token) for token, i in tokenizer.get_vocab().items() if i >= rows)
    if not beyond:
        return
    added = len(beyond) if all(i in tokenizer.added_tokens_decoder for i, _ in beyond) else 0
    what = f"{added} of them added to it" if added else f"{len(beyond)} of them without a row"
    raise VocabularyMismatch(
        f"the tokenizer in {folder} has {len(tokenizer)} tokens, the embedding {rows} rows; {what}, "
        f"first {beyond[0][1]!r} (id {beyond[0][0]})\n"
        f"  wanted: at least a row a token\n  do: take the tokenizer that the model was trained with, or resize it"
    )


def _context_tokens(folder: Path, text: PretrainedConfig) -> int:
    found = getattr(text, "max_position_embeddings", None)
    if not isinstance(found, int):
        raise TargetError(
            f"{folder / 'config.json'} of family `{text.model_type}` names no longest context\n"
            f"  wanted: max_position_embeddings\n  do: choose a target of another family"
        )
    return found


def _eos_ids(folder: Path, config: PretrainedConfig, tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """Every id that ends a text, the tokenizer's own first; chat models name more in generation_config.json."""
    sources: list[Any] = [tokenizer, config.get_text_config()]
    if (folder / "generation_config.json").is_file():
        sources.append(GenerationConfig.from_pretrained(folder))
    ids: list[int | None] = []
    for source in sources:
        ids += source.eos_token_id if isinstance(source.eos_token_id, list) else [source.eos_token_id]
    found = tuple(dict.fromkeys(i for i in ids if i is not None))
    if not found:
        raise TargetError(
            f"the target in {folder} names no end-of-text token\n  do: set eos_token_id in its config.json"
        )
    return found
