"""A small target, requests, and servers of the target."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from transformers import LlamaForCausalLM

from fastdraft.synthesize.completions import Request, SamplingParams
from fastdraft.synthesize.decoding_params import DecodingParams


@pytest.fixture(scope="session")
def serving() -> ModuleType:
    """tests/synthesize/serving.py"""
    spec = importlib.util.spec_from_file_location("serving", Path(__file__).with_name("serving.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["serving"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def serve(serving: ModuleType, target: LlamaForCausalLM) -> Iterator[Any]:
    """Start servers of the target; they stop at the end of the test."""
    started: list[Any] = []

    def start(**settings: Any) -> Any:
        started.append(serving.Serving(target, **settings))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture(scope="session")
def target(tiny_llama: Any) -> LlamaForCausalLM:
    return tiny_llama(7)


@pytest.fixture(scope="session")
def decoding() -> DecodingParams:
    return DecodingParams(11, frozenset({0}), seed=7, target_revision="r", batch_size=3, end=0)


@pytest.fixture(scope="session")
def requests() -> list[Request]:
    """41 prompts with three kinds of sampling parameters."""
    sampling_settings = [SamplingParams(0), SamplingParams(1.0), SamplingParams(0.7, 13, 0.9)]
    return [Request(np.arange(2 + i % 5) * 7 % 131 + i % 3, sampling_settings[i % 3], i) for i in range(41)]
