"""Models on the Hugging Face hub: download files, recognise hub ids, read licence and commit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import yaml
from huggingface_hub import constants, metadata_load, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from fastdraft.system.errors import TargetError

REFUSED = (401, 403)


def download(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """The folder in the hub's cache with the model's files that match these globs; downloads what is missing.

    TargetError if they cannot be downloaded.
    """
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        wrapped = isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None
        reason = _reason(name, revision, error.__cause__ if wrapped else error)
        raise TargetError(f"{name} is not a local folder, and {reason}") from error


def is_hub_id(path: str) -> bool:
    """Is this the name of a model on the hub, and not a local path?"""
    return re.fullmatch(r"\w[\w.-]*/[\w.-]+", path, re.ASCII) is not None and not Path(path).exists()


def name_of(path: str) -> str:
    """A model's name without local folders: its hub id, or its folder's name."""
    return path if is_hub_id(path) else Path(path).name


def commit_of(folder: Path) -> str | None:
    """The hub commit of a folder in the hub's cache; None for any other folder."""
    return folder.name if folder.parent.name == "snapshots" else None


def licence_of(folder: Path) -> str | None:
    """The licence in the front matter of a model's README.md, by the hub's name; None if there is none."""
    try:
        metadata = metadata_load(folder / "README.md") or {}
    except (OSError, ValueError, yaml.YAMLError):  # README.md is missing or invalid
        return None
    licence = metadata.get("license_name") or metadata.get("license")
    return licence.lower() if isinstance(licence, str) else None


def _reason(name: str, revision: str | None, error: BaseException | None) -> str:
    """The hub's error in words, and what to do. Subclasses are tested before their base classes."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, GatedRepoError):
        return (
            f"on the hub it is gated: {first}\n  wanted: an account to which its owner has given access\n"
            f"  do: accept its licence at {constants.ENDPOINT}/{name}, then `hf auth login`"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"the hub has no revision `{revision}` of it\n  do: give an existing branch, tag or commit"
    if isinstance(error, RepositoryNotFoundError):
        return (
            "the hub has no such model, or it is private\n  wanted: an id like Qwen/Qwen3-8B\n"
            "  do: check the name; for a private model `hf auth login`; for a folder give its path"
        )
    if isinstance(error, HFValidationError):
        return f"not a hub id either: {first}\n  do: give a folder, a config.json, a hub id, `demo` or `smollm2`"
    if isinstance(error, HfHubHTTPError) and error.response.status_code in REFUSED:
        return f"the hub requires authentication: {first}\n  do: `hf auth login`, with a token that can read it"
    if isinstance(error, HfHubHTTPError):
        return f"the hub returned an error: {first}\n  do: try again later, or give a local folder"
    return (
        f"the hub at {constants.ENDPOINT} cannot be reached: {first}\n"
        f"  do: check the network, HF_ENDPOINT and HF_HUB_OFFLINE; or give a local folder"
    )
