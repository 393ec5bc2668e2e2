"""Documents: where they come from, and how they become token shards."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from fastdraft.config.part import Fraction, Part


class SourcePart(Part):
    """One named source of documents."""

    source: Literal["python_code", "python_docstrings", "text", "jsonl", "parquet", "hub"] = Field(
        description="Where documents come from: the Python sources on this machine (or their docstrings), "
        "local files, or a data set on the hub."
    )
    path: str | None = Field(None, description="File, folder or glob of a local source; hub id of a data set.")
    subset: str | None = Field(None, description="Configuration name of a hub data set.")
    folder: str | None = Field(None, description="Folder of a hub data set, where it is divided by folders.")
    revision: str | None = Field(None, description="Hub revision of a data set (commit, branch or tag).")
    split: str = Field("train", description="Split of a hub data set.")
    field: str = Field("text", description="Field that holds the text, in rows of jsonl, parquet and hub.")
    licence: str | None = Field(None, description="Its licence, for the model card; nothing else depends on it.")
    separator: str | None = Field(
        None, description="In text files: the line that ends a document; otherwise a file is one."
    )
    sample_fraction: Fraction = Field(
        1.0, description="Share of the training documents that is kept, chosen by content hash."
    )
    held_out_fraction: Fraction = Field(0.02, description="Share of the documents held out, chosen by content hash.")
    held_out_list: str | None = Field(
        None,
        description="Allow-list of content hashes (a file; `demo:code` and `demo:text` came with the packaged target): "
        "held-out documents outside it are dropped.",
    )
    max_documents: PositiveInt | None = Field(
        None, description="Stop reading after so many documents; each task reads its part of them."
    )
    quality: tuple[Literal["gopher_quality", "gopher_repetition", "fineweb", "c4", "c4_paragraphs"], ...] = Field(
        (), description="datatrove's filters for English text from the web, in this order; docs/corpus.md."
    )


class SlurmPart(Part):
    """What the cluster is asked for; each datatrove task is one task of a job array."""

    partition: str = Field(description="Partition of the cluster.")
    hours: PositiveFloat = Field(24.0, description="Time limit of a task.")
    gigabytes: PositiveInt = Field(4, description="Memory of a task.")
    options: dict[str, str] = Field(
        default_factory=dict, description="Further options of sbatch by their long names, such as `account`."
    )


class TokenizePart(Part):
    """From documents to token shards."""

    tasks: PositiveInt = Field(1, description="datatrove tasks a source is split into; each writes its own shards.")
    workers: PositiveInt = Field(1, description="Tasks run at once.")
    executor: Literal["local", "slurm", "ray"] = Field(
        "local",
        description="Where tasks run: on this machine, on a Slurm cluster, or on Ray (the cluster at RAY_ADDRESS, "
        "otherwise one that is started on this machine). The shards are the same.",
    )
    slurm: SlurmPart | None = Field(None, description="For `executor: slurm`.")

    @model_validator(mode="after")
    def _slurm_knows_its_partition(self) -> TokenizePart:
        if self.executor == "slurm" and self.slurm is None:
            raise ValueError("executor is slurm; give slurm.partition")
        return self
