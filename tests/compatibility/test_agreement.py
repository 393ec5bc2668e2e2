"""The engines that are installed here say of a pair what their rule here says: of one that they take, and of others."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, pipeline

from fastdraft.compatibility.engine_rules import ENGINE_RULES
from fastdraft.models.model_files import read

from .conftest import ROWS, edit
from .test_engine_rules import change, other_bos, with_prefix

pytestmark = pytest.mark.slow

RULES = {rule.name: rule for rule in ENGINE_RULES}
PROMPT = torch.tensor([[1, 5, 17, 97]])


def ours(rule: str, mine, theirs) -> bool:
    return RULES[rule].check(read(str(mine)), read(str(theirs))).holds


# transformers.


@pytest.mark.parametrize("rows", [ROWS, ROWS + 1, ROWS + 128])
def test_transformers_generate(pair, make_model, rows):
    make_model(pair[1], 16, vocab_size=rows)
    model, draft = (AutoModelForCausalLM.from_pretrained(folder).eval() for folder in pair)
    assert ours("transformers, generate", *pair) is (rows == ROWS)
    if rows == ROWS:
        assert model.generate(PROMPT, assistant_model=draft, max_new_tokens=3, do_sample=False).shape[1] > 4
    else:
        with pytest.raises(ValueError, match="different tokenizers"):
            model.generate(PROMPT, assistant_model=draft, max_new_tokens=3, do_sample=False)


@pytest.mark.parametrize("keys", [{}, {"bos_token_id": 3}, {"pad_token_id": None}, {"eos_token_id": [0]}])
def test_transformers_pipeline(pair, keys):
    edit(pair[1] / "config.json", **keys)
    assert ours("transformers, pipeline", *pair) is (keys == {})
    write = pipeline("text-generation", str(pair[0]), assistant_model=str(pair[1]))
    if keys:
        with pytest.raises(ValueError, match="`assistant_tokenizer` is not required"):
            write("seven wolves", max_new_tokens=3)
    else:
        assert write("seven wolves", max_new_tokens=3)


# OpenVINO GenAI says it when the pipeline is made.

OPENVINO = {
    "fits": (Path.is_dir, True),
    "another pad": (lambda folder: edit(folder / "tokenizer_config.json", pad_token="<end>"), False),
    "another eos": (lambda folder: edit(folder / "tokenizer_config.json", eos_token="<fill>"), False),
    "no bos before a text": (change(other_bos), False),
    "a space before a text": (change(with_prefix), False),
    # What it does not look at.
    "another bos in config.json": (lambda folder: edit(folder / "config.json", bos_token_id=3), True),
    "another template": (lambda folder: (folder / "chat_template.jinja").write_text("{{ messages }}"), True),
}


@pytest.fixture(scope="session")
def exported(fitting, tmp_path_factory):
    """Both sides in OpenVINO's form; their tokenizers may be written anew."""
    pytest.importorskip("openvino_genai", reason="needs pip install 'fastdraft[openvino]'")
    from fastdraft.exporters.openvino import export_openvino

    made = tmp_path_factory.mktemp("exported")
    for folder in fitting:
        export_openvino(folder, made / folder.name, "fp16")
    return made


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("spoil", "taken"), OPENVINO.values(), ids=OPENVINO.keys())
def test_openvino_genai(pair, exported, tmp_path, spoil, taken):
    import openvino_genai
    from openvino import save_model
    from openvino_tokenizers import convert_tokenizer

    spoil(pair[1])
    folder = tmp_path / "exported"
    shutil.copytree(exported / "draft", folder)
    shutil.copyfile(pair[1] / "config.json", folder / "config.json")
    for model, name in zip(
        convert_tokenizer(read(str(pair[1])).tokenizer, with_detokenizer=True),
        ("openvino_tokenizer.xml", "openvino_detokenizer.xml"),
        strict=True,
    ):
        save_model(model, folder / name)
    assert ours("OpenVINO GenAI", *pair) is taken
    draft = openvino_genai.draft_model(str(folder), "CPU")
    if taken:
        openvino_genai.LLMPipeline(str(exported / "target"), "CPU", draft_model=draft)
    else:
        with pytest.raises(RuntimeError, match="Tokenizers for draft and main models are different"):
            openvino_genai.LLMPipeline(str(exported / "target"), "CPU", draft_model=draft)
