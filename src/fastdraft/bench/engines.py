"""The engines that a pair can be timed in, by the name that `--engine` takes."""

from __future__ import annotations

from fastdraft.bench.engine import Engine
from fastdraft.bench.engine_llama_cpp import LlamaCpp
from fastdraft.bench.engine_openvino import OpenVino
from fastdraft.bench.engine_transformers import Transformers
from fastdraft.system.errors import BenchError, DeviceError
from fastdraft.system.optional_packages import need

ENGINES: dict[str, type[Engine]] = {"openvino": OpenVino, "transformers": Transformers, "llama.cpp": LlamaCpp}


def engine_named(name: str) -> type[Engine]:
    """BenchError where there is none of that name, MissingExtra where a package that it takes is not installed."""
    if name not in ENGINES:
        raise BenchError(f"no engine `{name}`\n  do: choose one of {', '.join(ENGINES)}")
    for module, extra in ENGINES[name].modules:
        need(module, extra)
    return ENGINES[name]


def device_named(engine: type[Engine], name: str | None) -> str:
    """A device that is here, otherwise the usual one; DeviceError where it is not."""
    here = engine.devices()
    if name is None:
        return here[0]
    if name not in here:
        raise DeviceError(f"{engine.name} finds no device `{name}` here\n  do: choose one of {', '.join(here)}")
    return name


def weights_named(engine: type[Engine], name: str | None, device: str) -> str:
    """A precision, otherwise the usual one on the device; BenchError where the engine has none of that name."""
    if name is None:
        return engine.usual_weights(device)
    if name not in engine.weights:
        raise BenchError(f"{engine.name} has no weights `{name}`\n  do: choose one of {', '.join(engine.weights)}")
    return name
