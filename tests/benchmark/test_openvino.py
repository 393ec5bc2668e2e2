"""A real export in the real engine: its steps take time, and its tokenizer is the target's."""

import shutil
from pathlib import Path

import pytest

from fastdraft.config import TargetPart
from fastdraft.models.pretrained import TOKENIZER_FILES, folder_of

for module in ("openvino_genai", "openvino_tokenizers", "nncf", "optimum.intel"):
    pytest.importorskip(module, reason=f"{module} is not installed: pip install 'fastdraft[openvino]'")

from fastdraft.exporters.openvino import export_openvino  # noqa: E402
from fastdraft.models.openvino import open_pipeline, step_seconds  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def exported(tiny_llama, tmp_path_factory) -> Path:
    """A random model with the packaged target's tokenizer, exported at int8."""
    source, destination = tmp_path_factory.mktemp("model"), tmp_path_factory.mktemp("exports") / "int8"
    tokenizer = folder_of(TargetPart(path="demo"))
    tiny_llama(3, vocabulary=8192).save_pretrained(source)
    for name in TOKENIZER_FILES:
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, source / name)
    export_openvino(source, destination, "int8")
    return destination


def test_a_step_and_a_block_take_time(exported):
    assert 0 < step_seconds(exported, tokens=7, repeats=2) < 1
    assert 0 < step_seconds(exported, block_tokens=5, repeats=2) < 1


def test_the_engine_cuts_texts_as_the_target_does(exported):
    from tokenizers import Tokenizer

    own = Tokenizer.from_file(str(folder_of(TargetPart(path="demo")) / "tokenizer.json"))
    engines = open_pipeline(exported).get_tokenizer()
    for text in ("def main(argv):\n    return 0\n", "Déjà vu, 7 times", "  a\t\tb  "):
        assert engines.encode(text).input_ids.data[0].tolist() == own.encode(text).ids
