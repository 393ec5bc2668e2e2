"""What others call the rates that are reported, as they print them; docs/maths.md defines ours."""

from __future__ import annotations

from typing import NamedTuple


class Names(NamedTuple):
    """A rate's name in each engine and in the FastDraft paper; empty where it has none there."""

    ours: str
    vllm: str = ""
    sglang: str = ""
    openvino: str = ""
    paper: str = ""


# Read in vLLM's v1/spec_decode/metrics.py, SGLang's meta_info, openvino_genai 2026.4's SDPerModelsPerfMetrics and the
# paper's section 4. Leviathan et al. call alpha the expected acceptance rate.
ELSEWHERE = (
    Names("alpha"),
    Names("position_acceptance", vllm="Per-position acceptance rate"),
    Names(
        "acceptance_rate",
        vllm="Avg Draft acceptance rate",
        sglang="spec_accept_rate",
        openvino="get_draft_acceptance_rate()",
        paper="acceptance rate, AR",
    ),
    Names(
        "block_efficiency",
        vllm="Mean acceptance length",
        sglang="spec_accept_length",
        openvino="tokens / main_model_metrics' iterations",
        paper="block efficiency",
    ),
    Names("mbsu", paper="MBSU"),
)
