"""The playground in OpenVINO GenAI: its blocks, and stopping in the middle of a text."""

import numpy as np
import pytest

from fastdraft.play.blocks import Request, marks
from fastdraft.play.open_pair import open_pair
from fastdraft.synthesize.completions import SamplingParams

TOKENS = 31


@pytest.mark.slow
def test_blocks_are_those_of_the_engine(tmp_path, monkeypatch):
    pytest.importorskip("openvino_genai", reason="OpenVINO GenAI is not installed: pip install 'fastdraft[openvino]'")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    player = open_pair("demo", "demo", "openvino", None)
    prompt = np.array(player.tokenizer("def read_lines(path):\n").input_ids)
    request = Request(prompt, SamplingParams(0.0), 3, TOKENS, 7)
    plain, drafted = (list(player.blocks(request, side)) for side in ("plain", "drafted"))
    assert [len(block.tokens) for block in plain] == [1] * TOKENS
    assert sum(len(block.tokens) for block in drafted) == TOKENS
    assert len(drafted) < TOKENS
    assert all(len(block.tokens) <= 4 for block in drafted)
    assert set("".join(map(marks, drafted))) <= set("pacb")
    assert not player.keeps_distribution
    stopped = player.blocks(request, "drafted")
    assert len(next(stopped).tokens) == 1
    stopped.close()
    assert len(list(player.blocks(request, "plain"))) == TOKENS
