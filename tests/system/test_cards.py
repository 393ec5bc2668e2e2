"""Cards: writing, reading, and the errors for missing and invalid ones."""

import json
from typing import ClassVar

import pytest

from fastdraft.system.cards import FILE, VERSION, Card, Cost, card_key, read_card, write_card
from fastdraft.system.errors import CardError


class ShardsCard(Card):
    kind: ClassVar[str] = "shards"
    length: int
    names: tuple[str, ...] = ()


class DraftCard(Card):
    kind: ClassVar[str] = "draft"


@pytest.fixture
def card(tmp_path):
    card = ShardsCard(key="abc", cost=Cost(seconds=2.0, tokens=7), length=3, names=("狐",))
    write_card(tmp_path, card)
    return card


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
    with pytest.raises(CardError, match=f"{FILE} is not a card .*\n  do: remove {tmp_path} and run again"):
        read_card(tmp_path, ShardsCard)


def test_a_folder_instead_of_a_card_is_an_error(tmp_path):
    (tmp_path / FILE).mkdir()
    assert card_key(tmp_path) is None
    with pytest.raises(CardError, match="is not a card"):
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
