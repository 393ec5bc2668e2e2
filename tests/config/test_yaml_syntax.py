"""Replacing the draft's sizes in the text of a recipe: every other line stays as written."""

import pytest
import yaml

from fastdraft.config.yaml_syntax import with_draft

SIZES = {"hidden_size": 96, "layers": 7}


@pytest.mark.parametrize(
    ("draft", "kept"),
    [
        ("draft: {params_millions: 3, init: random} # after", {"init": "random"}),
        ("draft:\n    context_tokens: 31\n    params_millions: 3\n    heads: 5", {"context_tokens": 31}),
        ("draft:\n  params_millions: 3", {}),
    ],
)
@pytest.mark.parametrize("before", ["", "# first\nname: x # the name\n\n"])
@pytest.mark.parametrize("after", ["", "\n", "\n\n# of the corpus\n\ncorpus: {a: {source: text}} # here\n"])
def test_only_the_sizes_of_the_draft_change(draft, kept, before, after):
    text = with_draft(before + draft + after, SIZES)
    assert text.startswith(before)
    assert text.endswith(after)
    rest = yaml.safe_load(before + after) or {}
    assert yaml.safe_load(text) == rest | {"draft": kept | SIZES}
