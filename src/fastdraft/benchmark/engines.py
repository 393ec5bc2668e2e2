"""The engines in which a pair can be timed, by the name that `--engine` takes."""

from __future__ import annotations

from fastdraft.benchmark.engine import Engine
from fastdraft.benchmark.engine_llama_cpp import LlamaCpp
from fastdraft.benchmark.engine_openvino import OpenVino
from fastdraft.benchmark.engine_transformers import Transformers
from fastdraft.system.errors import BenchError, DeviceError
from fastdraft.system.optional_packages import need

ENGINES: dict[str, type[Engine]] = {"openvino": OpenVino, "transformers": Transformers, "llama.cpp": LlamaCpp}


def engine_named(name: str) -> type[Engine]:
    """BenchError if there is no engine of that name, MissingExtra if a package that it needs is not installed."""
    if name not in ENGINES:
        raise BenchError(f"no engine `{name}`\n  do: choose one of {', '.join(ENGINES)}")
    for module, extra in ENGINES[name].modules:
        need(module, extra)
    return ENGINES[name]


def device_named(engine: type[Engine], name: str | None) -> str:
    """A device of this machine, by default the engine's first; DeviceError if there is none of that name."""
    devices = engine.devices()
    if name is None:
        return devices[0]
    if name not in devices:
        raise DeviceError(f"{engine.name} finds no device `{name}` here\n  do: choose one of {', '.join(devices)}")
    return name


def weights_named(engine: type[Engine], name: str | None, device: str) -> str:
    """A precision, by default the usual one on the device; BenchError if the engine has none of that name."""
    if name is None:
        return engine.default_weights(device)
    if name not in engine.weights:
        raise BenchError(f"{engine.name} has no weights `{name}`\n  do: choose one of {', '.join(engine.weights)}")
    return name
