"""What engines and the FastDraft paper call the rates that FastDraft reports, as they print them.

docs/maths.md defines the rates.
"""

from __future__ import annotations

from typing import NamedTuple


class RateNames(NamedTuple):
    """FastDraft's name of a rate, and its name in each engine and in the paper; empty if it has none there."""

    fastdraft: str
    vllm: str = ""
    sglang: str = ""
    openvino: str = ""
    paper: str = ""


# Sources: vLLM's v1/spec_decode/metrics.py, SGLang's meta_info, openvino_genai 2026.4's SDPerModelsPerfMetrics, and the
# paper's section 4. Leviathan et al. call alpha the expected acceptance rate.
RATE_NAMES = (
    RateNames("alpha"),
    RateNames("position_acceptance", vllm="Per-position acceptance rate"),
    RateNames(
        "acceptance_rate",
        vllm="Avg Draft acceptance rate",
        sglang="spec_accept_rate",
        openvino="get_draft_acceptance_rate()",
        paper="acceptance rate, AR",
    ),
    RateNames(
        "block_efficiency",
        vllm="Mean acceptance length",
        sglang="spec_accept_length",
        openvino="tokens / main_model_metrics' iterations",
        paper="block efficiency",
    ),
    RateNames("mbsu", paper="MBSU"),
)
