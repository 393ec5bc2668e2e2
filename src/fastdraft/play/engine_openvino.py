"""OpenVINO GenAI: its own pipelines, watched through a streamer, which is given a block's tokens at a time.

The engine does not say which of them it drafted: a block's last token is the target's own, the others were accepted.
"""

from __future__ import annotations

from collections.abc import Iterator
from queue import Queue
from threading import Event, Thread
from time import perf_counter
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from fastdraft.bench.engine import Arm
from fastdraft.bench.engine import Asked as Timing
from fastdraft.bench.engine_openvino import OpenedOpenVino
from fastdraft.bench.engine_openvino import OpenVino as BenchedOpenVino
from fastdraft.models.openvino_llama import EXTRA
from fastdraft.play.blocks import SIDES, Asked, Block, Side
from fastdraft.synthesize.completions import SamplingParams
from fastdraft.system.optional_packages import need


class OpenVino:
    """A pair of exported models; a text that has begun cannot wait for the other side."""

    name, interleaves, keeps_distribution = "OpenVINO GenAI", False, BenchedOpenVino.keeps_distribution

    def __init__(self, opened: OpenedOpenVino, tokenizer: PreTrainedTokenizerFast, context_tokens: int) -> None:
        self._opened, self.tokenizer, self.context_tokens = opened, tokenizer, context_tokens
        first = Asked(np.zeros(1, np.int64), SamplingParams(0.0), 1, 2, 0)
        for side in SIDES:  # a pipeline is opened when it is first asked, which takes seconds
            list(self.blocks(first, side))

    def blocks(self, asked: Asked, side: Side) -> Iterator[Block]:
        """As the engine streams them; left early, it is stopped at its next block."""
        gamma = asked.gamma if side == "drafted" else 0
        arm = Arm("draft", gamma) if gamma else Arm("none")
        timing = Timing(asked.prompt, asked.sampling, asked.tokens, asked.seed)
        come: Queue[list[int] | BaseException | None] = Queue()
        left = Event()
        thread = Thread(target=_generated, args=(self._opened, timing, arm, come, left), daemon=True)
        started, drafted = perf_counter(), 0  # the prompt's forward emits one token, and nothing was drafted for it
        thread.start()
        try:
            while (found := come.get()) is not None:
                if isinstance(found, BaseException):
                    raise found
                yield Block(tuple(found), len(found) - 1 if drafted else 0, drafted, perf_counter() - started)
                drafted = gamma
        finally:
            left.set()
            thread.join()


def _generated(
    opened: OpenedOpenVino, timing: Timing, arm: Arm, come: Queue[list[int] | BaseException | None], left: Event
) -> None:
    """In a thread of its own; whatever happens comes out of the queue."""
    genai = need("openvino_genai", EXTRA)
    base: Any = genai.StreamerBase

    class Streamer(base):  # type: ignore[misc]
        """Passes tokens on."""

        def write(self, tokens: Any) -> Any:
            """One token or a block."""
            come.put([tokens] if isinstance(tokens, int) else list(tokens))
            return genai.StreamingStatus.STOP if left.is_set() else genai.StreamingStatus.RUNNING

        def end(self) -> None:
            """Nothing is held back."""

    try:
        opened.stream(timing, arm, Streamer())
    except Exception as error:  # shown to who asked, wherever it came from
        come.put(error)
    finally:
        come.put(None)
