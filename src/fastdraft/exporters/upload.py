"""Upload an export to the hub: plan first, then upload."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from huggingface_hub import HfApi

# The errors of the HTTP library that the hub's client uses: httpx, from huggingface_hub 2 on httpx2.
from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]

from fastdraft.exporters import licence_terms
from fastdraft.results.export import ExportCard
from fastdraft.system.cards import FILE, open_stage
from fastdraft.system.errors import ExportError


class Upload(NamedTuple):
    """The plan of an upload. `files`: bytes of each file; `licence`: the target's, by the hub's name."""

    folder: Path
    repo: str
    private: bool
    files: dict[str, int]
    licence: str | None = None

    def summary(self) -> str:
        """The plan in words, for a person who decides."""
        kind = "private" if self.private else "PUBLIC"
        lines = [f"  {size:>15,}  {name}" for name, size in self.files.items()]
        total = f"{len(self.files)} files, {sum(self.files.values()):,} bytes"
        rule = licence_terms.misnamed(self.licence, self.repo)
        warnings = [f"  WARNING: {rule}. Rename it before others can see it."] if rule else []
        head = f"{self.folder} -> {self.repo} ({kind} model repository)"
        return "\n".join([head, *lines, f"  {total}", f"  {licence_terms.in_a_line(self.licence)}", *warnings])


def planned(folder: Path, repo: str, private: bool) -> Upload:
    """The plan to upload every file of an export.

    ExportError if the folder is not an export, or its public name breaks the target's licence; CardError if its card
    cannot be read or a file is not the card's.
    """
    if not (folder / FILE).is_file():
        raise ExportError(
            f"{folder} is not an export: it has no {FILE}\n  do: fastdraft export DRAFT --format FORMAT first"
        )
    licence = open_stage(folder, ExportCard).target_licence
    if not private and (rule := licence_terms.misnamed(licence, repo)):
        raise ExportError(
            f"{repo} is not an allowed name: {rule}\n"
            f"  do: choose such a name, or leave out --public and rename it before others can see the draft"
        )
    files = {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
    return Upload(folder, repo, private, files, licence)


def push(upload: Upload, api: HfApi) -> str:
    """Create the repository if needed, and upload in one commit. Returns the commit's address.

    ExportError if the hub refuses, or if private was requested and the repository exists and is public.
    """
    try:
        api.create_repo(upload.repo, private=upload.private, exist_ok=True)
        if upload.private and not api.model_info(upload.repo).private:
            raise ExportError(f"{upload.repo} exists and is public\n  do: choose another name, or add --public")
        commit = api.upload_folder(
            repo_id=upload.repo,
            folder_path=upload.folder,
            allow_patterns=list(upload.files),
            commit_message="A draft for speculative decoding",
        )
    except (HTTPError, HFValidationError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ExportError(
            f"{upload.repo} was not uploaded: {reason}\n  do: check the name and the network, and `hf auth login`"
        ) from error
    return str(commit.commit_url)
