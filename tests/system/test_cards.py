"""Cards: writing, reading, and the errors for missing and invalid ones."""

import json
import os
from pathlib import Path
from typing import ClassVar

import pytest

from fastdraft.system import stage_files
from fastdraft.system.cards import FILE, VERSION, Card, Cost, card_key, open_stage, read_card, write_card
from fastdraft.system.errors import CardError


class ShardsCard(Card):
    kind: ClassVar[str] = "shards"
    length: int
    names: tuple[str, ...] = ()


class DraftCard(Card):
    kind: ClassVar[str] = "draft"


class GrowingCard(Card):
    kind: ClassVar[str] = "growing"
    grows: ClassVar[bool] = True
    refills: ClassVar[bool] = True
    left_out: ClassVar[tuple[str, ...]] = ("metrics.jsonl", "checkpoint-*")


@pytest.fixture
def card(tmp_path):
    card = ShardsCard(key="abc", cost=Cost(seconds=2.0, tokens=7), length=3, names=("狐",))
    return write_card(tmp_path, card)


def change(folder, **keys):
    content = json.loads((folder / FILE).read_text())
    (folder / FILE).write_text(json.dumps(content | keys))


def test_a_card_is_read_as_it_was_written(tmp_path, card):
    assert read_card(tmp_path, ShardsCard) == card
    assert card_key(tmp_path) == "abc"
    assert (card.cost.tokens_per_second, Cost(seconds=0.0).tokens_per_second) == (3.5, 0.0)
    with pytest.raises(ValueError, match="frozen"):
        card.length = 4


def test_a_missing_card_is_an_error(tmp_path):
    assert card_key(tmp_path) is None
    with pytest.raises(CardError, match=f"no card at {tmp_path}/{FILE}\n  do: run the stage"):
        read_card(tmp_path, ShardsCard)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "3", '"text"', "null", "{}", '{"kind": "shards"}', "[1, 2]", "\udcff"]
)
def test_a_file_that_is_not_a_card_is_an_error(tmp_path, content):
    (tmp_path / FILE).write_bytes(content.encode("utf-8", "surrogateescape"))
    assert card_key(tmp_path) is None
    with pytest.raises(CardError, match=f"{FILE} is not a card: .*\n  do: remove {tmp_path} and run again"):
        read_card(tmp_path, ShardsCard)


def test_a_folder_instead_of_a_card_is_an_error(tmp_path):
    (tmp_path / FILE).mkdir()
    assert card_key(tmp_path) is None
    with pytest.raises(CardError, match=f"{FILE} cannot be read"):
        read_card(tmp_path, ShardsCard)


def test_a_card_of_another_kind_is_an_error(tmp_path, card):
    with pytest.raises(CardError, match=f"is a card `shards` of version {VERSION}, wanted `draft` .*\n  do: remove"):
        read_card(tmp_path, DraftCard)


def test_a_card_of_another_version_is_an_error(tmp_path, card):
    change(tmp_path, version=VERSION + 1)
    assert card_key(tmp_path) is None
    with pytest.raises(
        CardError, match=f"of version {VERSION + 1}, wanted `shards` of version {VERSION}\n  do: remove"
    ):
        read_card(tmp_path, ShardsCard)


@pytest.mark.parametrize("keys", [{"length": "long"}, {"unknown": 1}, {"cost": None}])
def test_a_card_with_invalid_fields_is_an_error(tmp_path, card, keys):
    change(tmp_path, **keys)
    with pytest.raises(CardError, match=r"not a valid card `shards`(.|\n)*do: remove"):
        read_card(tmp_path, ShardsCard)
    assert CardError.exit_code == 2


def fill(folder: Path, bytes_per_file: int = 5_003) -> list[str]:
    """Write the files of a stage. Returns the paths that its card must record."""
    names = [
        "quality.json",
        "completions/a.parquet",
        "completions/b.parquet",
        "model/deep/weights.safetensors",
        "empty",
    ]
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"" if name == "empty" else bytes([number + 1]) * bytes_per_file)
    return names


def flip(path: Path, place: int, count: int = 64) -> None:
    """Change bytes in the middle of a file, which keeps its size and its time of modification."""
    before, content = path.stat(), bytearray(path.read_bytes())
    content[place : place + count] = bytes(255 - byte for byte in content[place : place + count])
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_stage_opens_with_the_files_that_were_there_when_its_card_was_written(tmp_path):
    names = fill(tmp_path)
    for name in ("metrics.jsonl", "checkpoint-7/model.safetensors", "key", "x.fastdraft-part/y"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("changes")
    card = write_card(tmp_path, GrowingCard(key="abc", cost=Cost(seconds=1.0)))
    assert sorted(card.contents) == sorted(names)
    for name in ("metrics.jsonl", "key"):
        (tmp_path / name).write_text("has changed")
    assert open_stage(tmp_path, GrowingCard) == open_stage(tmp_path, GrowingCard, whole=True) == card


DAMAGES = {
    "gone": lambda path: path.unlink(),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "first bytes": lambda path: flip(path, 0),
    "64 bytes in the middle": lambda path: flip(path, 2_503),
    "last byte": lambda path: flip(path, 5_002, 1),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
@pytest.mark.parametrize("kind", [DraftCard, GrowingCard])
def test_every_damaged_file_of_a_stage_is_found(tmp_path, kind, damage):
    for name in fill(tmp_path)[:-1]:
        fill(tmp_path)
        write_card(tmp_path, kind(key="abc", cost=Cost(seconds=1.0)))
        open_stage(tmp_path, kind)
        damage(tmp_path / name)
        remedy = f"remove these files and {tmp_path / FILE}" if kind.refills else f"or remove {tmp_path} and run again"
        with pytest.raises(CardError, match=rf"(?s)^{tmp_path} .*\n  {name} (is|has) .*\n  do: .*{remedy}"):
            open_stage(tmp_path, kind)
        assert read_card(tmp_path, kind).key == "abc"
        if (tmp_path / name).is_dir():
            (tmp_path / name).rmdir()


def test_an_added_shard_is_refused_unless_the_stage_grows(tmp_path):
    for kind in (GrowingCard, DraftCard):
        fill(tmp_path)
        write_card(tmp_path, kind(key="abc", cost=Cost(seconds=1.0)))
        (tmp_path / "notes.txt").write_text("mine")
        (tmp_path / "completions" / "notes.txt").write_text("mine")
        open_stage(tmp_path, kind)
        (tmp_path / "completions" / "c.parquet").write_text("another run's")
        if kind.grows:
            open_stage(tmp_path, kind)
            (tmp_path / "completions" / "c.parquet").unlink()
    with pytest.raises(CardError, match=r"completions/c.parquet is not in its card\n  do: move"):
        open_stage(tmp_path, DraftCard)


def test_a_large_stage_is_sampled_and_read_in_full_on_request(tmp_path, monkeypatch):
    """A file is then read at its head, its tail, and 14 places in between."""
    size = 3 * stage_files.BLOCKS * stage_files.BLOCK_BYTES
    fill(tmp_path, size)
    write_card(tmp_path, DraftCard(key="abc", cost=Cost(seconds=1.0)))
    weights, between = tmp_path / "model/deep/weights.safetensors", 2 * stage_files.BLOCK_BYTES
    flip(weights, between)
    with pytest.raises(CardError, match="weights.safetensors has changed"):
        open_stage(tmp_path, DraftCard)
    monkeypatch.setattr(stage_files, "WHOLE_BYTES", size)
    open_stage(tmp_path, DraftCard)
    with pytest.raises(CardError, match="weights.safetensors has changed"):
        open_stage(tmp_path, DraftCard, whole=True)
    flip(weights, between)
    for place in (0, size - 64):
        flip(weights, place)
        with pytest.raises(CardError, match="weights.safetensors has changed"):
            open_stage(tmp_path, DraftCard)
        flip(weights, place)
    open_stage(tmp_path, DraftCard)


@pytest.mark.parametrize("name", ["a\0b", "x" * 999, "../../etc/passwd", "\ud800"])
def test_a_card_with_impossible_names_of_files_is_an_error(tmp_path, card, name):
    change(tmp_path, contents={name: {"bytes": 3, "digest": "ab", "sample": "ab"}})
    with pytest.raises(CardError, match=str(tmp_path)):
        open_stage(tmp_path, ShardsCard)
