"""MFU from FLOPs counted by hand, and peak memory."""

import json

import pytest
import torch

from fastdraft.train import utilization
from fastdraft.train.loop import train
from fastdraft.train.utilization import Meter, peak_memory_bytes


def test_mfu_is_flops_over_seconds_and_rate(make_phase, make_model, tmp_path, monkeypatch):
    """A tied draft of 31 tokens, width 16, two layers: 6 FLOPs per weight except the input embedding, and attention."""
    phase = make_phase(tmp_path, make_model())
    monkeypatch.setattr(utilization, "_rate", lambda *_: 1e6)
    layer = 16 * 16 * 2 + 16 * 8 * 2 + 3 * 16 * 24 + 2 * 16
    attention = 2 * 2 * 16 * 3.5
    flops = 6 * 35 * (2 * layer + 16 + 31 * 16 + attention)
    mfu = Meter(phase.model.config, phase.part, phase.device, phase.dtype).metrics(0.25)["mfu"]
    assert mfu == pytest.approx(flops / 0.25 / 1e6)


def test_each_line_has_mfu_and_memory(make_phase, tmp_path):
    train(make_phase(tmp_path))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 11
    assert all(0 < row["mfu"] < 1 for row in rows)
    assert all(row["memory_bytes"] > 1e7 for row in rows)


def test_peak_memory_includes_freed_memory():
    before = peak_memory_bytes(torch.device("cpu"))
    torch.ones(before // 4 + 50_000_000).sum()
    assert peak_memory_bytes(torch.device("cpu")) >= 4 * 50_000_000
