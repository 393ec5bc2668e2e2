"""The commands that use a draft in each engine, for model cards and docs/deploy.md (a test compares them)."""

from __future__ import annotations

from typing import NamedTuple

GAMMA = 4


class Snippet(NamedTuple):
    """`format` is the export that the engine reads; the caller replaces TARGET, DRAFT and GAMMA in the text."""

    format: str
    language: str
    text: str

    def filled(self, target: str, draft: str, gamma: int = GAMMA) -> str:
        """The text for one pair."""
        return self.text.replace("TARGET", target).replace("DRAFT", draft).replace("GAMMA", str(gamma))


TRANSFORMERS = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("TARGET")
target = AutoModelForCausalLM.from_pretrained("TARGET")
draft = AutoModelForCausalLM.from_pretrained("DRAFT")
draft.generation_config.num_assistant_tokens = GAMMA
draft.generation_config.num_assistant_tokens_schedule = "constant"
draft.generation_config.assistant_confidence_threshold = 0.0
prompt = tokenizer("def main(", return_tensors="pt")
text = target.generate(**prompt, assistant_model=draft, max_new_tokens=64, do_sample=False)
print(tokenizer.decode(text[0]))
"""

VLLM = """\
vllm serve TARGET --speculative-config \\
    '{"method": "draft_model", "model": "DRAFT", "num_speculative_tokens": GAMMA}'
"""

SGLANG = """\
python -m sglang.launch_server --model-path TARGET --speculative-algorithm STANDALONE \\
    --speculative-draft-model-path DRAFT --speculative-eagle-topk 1 \\
    --speculative-num-steps GAMMA --speculative-num-draft-tokens $((GAMMA + 1))
"""

LLAMA_CPP = """\
llama-server -m TARGET -md DRAFT --spec-type draft-simple --spec-draft-n-max GAMMA
"""

OPENVINO_GENAI = """\
import openvino_genai

target = openvino_genai.LLMPipeline("TARGET", "CPU", draft_model=openvino_genai.draft_model("DRAFT", "CPU"))
print(target.generate("def main(", max_new_tokens=64, do_sample=False, num_assistant_tokens=GAMMA))
"""

# By the engine's name.
USAGE = {
    "transformers": Snippet("huggingface", "python", TRANSFORMERS),
    "vLLM": Snippet("huggingface", "bash", VLLM),
    "SGLang": Snippet("huggingface", "bash", SGLANG),
    "llama.cpp": Snippet("gguf", "bash", LLAMA_CPP),
    "OpenVINO GenAI": Snippet("openvino", "python", OPENVINO_GENAI),
}
