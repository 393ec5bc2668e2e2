"""The upload of an export to the hub: said first, done only when asked."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from huggingface_hub import HfApi

# The errors of the HTTP library that the hub's client uses: httpx, from huggingface_hub 2 on httpx2.
from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]

from fastdraft.export import licence_terms
from fastdraft.results.export import ExportCard
from fastdraft.system.cards import FILE, read_card
from fastdraft.system.errors import ExportError


class Upload(NamedTuple):
    """What would go where; bytes of each file. `licence`: the target's, in the hub's words."""

    folder: Path
    repo: str
    private: bool
    files: dict[str, int]
    licence: str | None = None

    def said(self) -> str:
        """All of it, for a person who decides."""
        kind = "private" if self.private else "PUBLIC"
        lines = [f"  {size:>15,}  {name}" for name, size in self.files.items()]
        total = f"{len(self.files)} files, {sum(self.files.values()):,} bytes"
        broken = licence_terms.misnamed(self.licence, self.repo)
        warned = [f"  WARNING: {broken}. Before others can see it, give it such a name."] if broken else []
        head = f"{self.folder} -> {self.repo} ({kind} model repository)"
        return "\n".join([head, *lines, f"  {total}", f"  {licence_terms.in_a_line(self.licence)}", *warned])


def planned(folder: Path, repo: str, private: bool) -> Upload:
    """Every file of an export; ExportError where the folder is none, CardError where its card cannot be read.

    ExportError too where all could see a name that the target's licence forbids.
    """
    if not (folder / FILE).is_file():
        raise ExportError(
            f"{folder} is no export: it has no {FILE}\n  do: fastdraft export DRAFT --format FORMAT first"
        )
    licence = read_card(folder, ExportCard).target_licence
    if not private and (broken := licence_terms.misnamed(licence, repo)):
        raise ExportError(
            f"{repo} cannot be its name: {broken}\n"
            f"  do: choose a name that does, or leave --public out and choose it before others can see the draft"
        )
    files = {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
    return Upload(folder, repo, private, files, licence)


def push(upload: Upload, api: HfApi) -> str:
    """Make the repository where there is none, upload in one commit; the commit's address.

    ExportError where the hub refuses, with what it says, or where a repository that is there already is public and a
    private one was spoken of.
    """
    try:
        api.create_repo(upload.repo, private=upload.private, exist_ok=True)
        if upload.private and not api.model_info(upload.repo).private:
            raise ExportError(f"{upload.repo} is there already, and public\n  do: choose another name, or add --public")
        done = api.upload_folder(
            repo_id=upload.repo,
            folder_path=upload.folder,
            allow_patterns=list(upload.files),
            commit_message="A draft for speculative decoding",
        )
    except (HTTPError, HFValidationError, OSError) as error:
        told = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ExportError(
            f"{upload.repo} was not uploaded: {told}\n  do: check the name and the network, and `hf auth login`"
        ) from error
    return str(done.commit_url)
