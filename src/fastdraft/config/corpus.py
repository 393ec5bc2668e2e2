"""Schema of the corpus: sources of documents, and their tokenization into shards."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, model_validator

from fastdraft.config.part import Count, Fraction, Mark, Parallel, Part, Total


class SourcePart(Part):
    """One named source of documents."""

    source: Literal["python_code", "python_docstrings", "text", "jsonl", "parquet", "hub"] = Field(
        description="Kind of source: the Python files installed on this machine, or their docstrings; local files; "
        "a dataset on the hub."
    )
    path: str | None = Field(None, description="File, folder or glob of local files; hub id of a dataset.")
    subset: str | None = Field(None, description="Configuration name of a hub dataset.")
    folder: str | None = Field(None, description="Folder within a hub dataset; by default the whole dataset is read.")
    revision: str | None = Field(None, description="Revision of a hub dataset (commit, branch or tag).")
    split: str = Field("train", description="Split of a hub dataset.")
    field: str = Field("text", description="Field that holds the text, in jsonl, parquet and hub.")
    licence: Annotated[str | None, Mark.NO_RESULT] = Field(
        None, description="Licence of the source; used only in the model card."
    )
    separator: str | None = Field(
        None, description="Line that separates documents in text files; by default each file is one document."
    )
    sample_fraction: Fraction = Field(
        1.0, description="Fraction of the training documents to keep, selected by content hash."
    )
    held_out_fraction: Fraction = Field(0.02, description="Fraction of the documents to hold out, by content hash.")
    held_out_list: str | None = Field(
        None,
        description="File with content hashes. Held-out documents that are not in it are dropped. `demo:code` and "
        "`demo:text` name the lists of the packaged target.",
    )
    max_documents: Total | None = Field(
        None, description="Number of documents to read; each task reads an equal part of them."
    )
    quality: tuple[Literal["gopher_quality", "gopher_repetition", "fineweb", "c4", "c4_paragraphs"], ...] = Field(
        (), description="datatrove's filters for English web text, applied in this order. See docs/corpus.md."
    )


class SlurmPart(Part):
    """Resources requested from Slurm; each datatrove task is one task of a job array."""

    partition: str = Field(description="Slurm partition.")
    hours: PositiveFloat = Field(24.0, le=10**5, description="Time limit of a task, in hours.")
    gigabytes: Count = Field(4, description="Memory of a task, in GB.")
    options: dict[str, str] = Field(
        default_factory=dict, description="Other options of sbatch by their long names, such as `account`."
    )


class TokenizePart(Part):
    """Tokenization of the corpus into token shards."""

    tasks: Count = Field(1, description="Number of datatrove tasks per source; each writes its own shards.")
    workers: Annotated[Parallel, Mark.NO_RESULT] = Field(1, description="Number of tasks that run concurrently.")
    executor: Annotated[Literal["local", "slurm", "ray"], Mark.NO_RESULT] = Field(
        "local",
        description="Where tasks run: on this machine, on Slurm, or on Ray (the cluster at RAY_ADDRESS; without it, a "
        "cluster started on this machine). The shards are the same.",
    )
    slurm: Annotated[SlurmPart | None, Mark.NO_RESULT] = Field(None, description="Required by `executor: slurm`.")

    @model_validator(mode="after")
    def _slurm_has_a_partition(self) -> TokenizePart:
        if self.executor == "slurm" and self.slurm is None:
            raise ValueError("executor is slurm; give slurm.partition")
        return self
