"""The folder of a model, and the digest of its files. Only GGUF files need torch and transformers.

Every function takes a `Model`: a Path is a local folder; a string is a hub id, a local folder, a GGUF file or the name
of a pair (its target); a TargetPart adds the hub revision, and whether remote code and pickled weights are allowed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import xxhash

from fastdraft.config import TargetPart
from fastdraft.models import named_pairs
from fastdraft.models.file_errors import errors_explained
from fastdraft.models.gguf_tokenizer import VOCABULARY
from fastdraft.system.errors import TargetError

Model = TargetPart | Path | str

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
    VOCABULARY,
)


def as_part(model: Model) -> TargetPart:
    """The model as a TargetPart."""
    if isinstance(model, TargetPart):
        return model
    return TargetPart(path=model if isinstance(model, str) else str(model.resolve()))


def folder_of(model: Model, weights: bool = True) -> Path:
    """The local folder with the model's files; a hub model is downloaded, without its weights if `weights` is False.

    A path to a config.json stands for its folder; the model in a GGUF file has a folder in the cache. Raises
    TargetError if there is no such folder, or if it has only pickled weights and `allow_pickle` is off.
    """
    part = as_part(model)
    with errors_explained(f"{part.path!a} cannot be read", "check the path and its permissions"):
        local = named_pairs.target(part.path) if part.path in named_pairs.NAMES else Path(part.path).expanduser()
        if local.suffix == ".gguf":
            from fastdraft.models import gguf_file

            return gguf_file.folder_of(local, weights)
        if local.is_symlink() and not local.exists():
            raise TargetError(f"{local} is a link to {local.readlink()}, which leads nowhere\n  do: correct the link")
        folder = local if local.exists() or part.path.startswith((".", "/", "~")) else _download(part, weights)
        folder = folder.parent if folder.name == "config.json" else folder
        if not (folder / "config.json").is_file():
            names = " or ".join(named_pairs.NAMES)
            raise TargetError(
                f"no config.json in {folder}\n  do: give the folder of a model, a GGUF file, a hub id, {names}"
            )
        # openvino_model.bin of an OpenVINO export is not a pickle.
        files = [file for file in folder.iterdir() if not file.name.startswith("openvino_")]
    weight_files = [file for file in files if file.suffix in (".safetensors", *PICKLED)]
    if weight_files and not part.allow_pickle and all(file.suffix in PICKLED for file in weight_files):
        raise TargetError(
            f"{folder} has pickled weights only ({weight_files[0].name}), which can run code when they are loaded\n"
            f"  wanted: *.safetensors\n  do: convert them, or set target.allow_pickle=true if you trust their maker"
        )
    return folder


def digest(model: Model, weights: bool = True) -> str:
    """Hash of the model's files: all bytes of configuration and tokenizer; name, size, head and tail of weight files.

    Reading gigabytes of weights would take minutes.
    """
    folder, digest_state = folder_of(model, weights), xxhash.xxh3_64()
    with errors_explained(f"the files in {folder} cannot be read", "check their permissions"):
        for file in sorted(file for file in folder.iterdir() if file.is_file()):
            if file.name in ("config.json", "generation_config.json", *TOKENIZER_FILES):
                digest_state.update(file.name.encode() + file.read_bytes())
            elif file.suffix in (".safetensors", *PICKLED):
                with file.open("rb") as handle:
                    head = handle.read(1 << 20)
                    handle.seek(max(file.stat().st_size - (1 << 20), 0))
                    digest_state.update(f"{file.name}:{file.stat().st_size}".encode() + head + handle.read(1 << 20))
    return str(digest_state.hexdigest())


def named_digest(model: str, key: str) -> str:
    """The digest of a model that the recipe names at `key`, with which errors begin."""
    with errors_name(key):
        return digest(model)


@contextmanager
def errors_name(key: str) -> Iterator[None]:
    """Let TargetErrors begin with the recipe key that names the model."""
    try:
        yield
    except TargetError as error:
        raise TargetError(f"{key}: {error}") from error


def _download(part: TargetPart, weights: bool) -> Path:
    from fastdraft.models.hub import download

    patterns = ["*.json", "*.model", "*.txt", "*.jinja", "README.md", "LICENSE*", "USE_POLICY*"]
    patterns += ["*.safetensors"] if weights else []
    patterns += ["*.bin"] if weights and part.allow_pickle else []
    patterns += ["*.py"] if part.trust_remote_code else []
    return download(part.path, part.revision, patterns)
