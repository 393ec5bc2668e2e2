"""A model's files on the hub: fetched into the hub's own cache, or an error that says what to do."""

from __future__ import annotations

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


def fetched(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """The folder with a model's files that match, from the cache where they are there; TargetError where none can be.

    `patterns` are globs over file names.
    """
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        nothing_kept = isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None
        said = _said(name, revision, error.__cause__ if nothing_kept else error)
        raise TargetError(f"{name} is no local folder, and {said}") from error


def is_hub_id(path: str) -> bool:
    """Whether a model's name means something on another machine."""
    return path.count("/") == 1 and not path.startswith((".", "/", "~")) and not Path(path).exists()


def name_of(path: str) -> str:
    """A model's name as another machine knows it; of a local folder its own name."""
    return path if is_hub_id(path) else Path(path).name


def commit_of(folder: Path) -> str | None:
    """The hub's commit that a folder of its cache holds; None of any other folder."""
    return folder.name if folder.parent.name == "snapshots" else None


def licence_of(folder: Path) -> str | None:
    """The licence that a model's README.md names in its front matter, in the hub's words; None where it names none."""
    try:
        said = metadata_load(folder / "README.md") or {}
    except (OSError, ValueError, yaml.YAMLError):  # no README.md, or none that can be read: then nothing is said
        return None
    named = said.get("license_name") or said.get("license")
    return named.lower() if isinstance(named, str) else None


def _said(name: str, revision: str | None, error: BaseException | None) -> str:
    """What the hub's error means and what to do; the more special class stands first."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, GatedRepoError):
        return (
            f"on the hub it is gated: {first}\n  wanted: an account that its owner lets in\n"
            f"  do: accept its licence at {constants.ENDPOINT}/{name}, then `hf auth login`"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"the hub has no revision `{revision}` of it\n  do: give a branch, a tag or a commit that it has"
    if isinstance(error, RepositoryNotFoundError):
        return (
            "the hub has no such model, or hides it from you\n  wanted: an id like Qwen/Qwen3-8B\n"
            "  do: check the name; for a private model `hf auth login`; for a folder give its path"
        )
    if isinstance(error, HFValidationError):
        return f"no hub id either: {first}\n  do: give a folder, a config.json, a hub id, or `demo`"
    if isinstance(error, HfHubHTTPError) and error.response.status_code in REFUSED:
        return f"the hub wants to know who asks: {first}\n  do: `hf auth login`, with a token that may read it"
    if isinstance(error, HfHubHTTPError):
        return f"the hub does not answer as it should: {first}\n  do: try again later, or give a local folder"
    return (
        f"the hub at {constants.ENDPOINT} cannot be reached: {first}\n"
        f"  do: check the network, HF_ENDPOINT and HF_HUB_OFFLINE; or give a local folder"
    )
