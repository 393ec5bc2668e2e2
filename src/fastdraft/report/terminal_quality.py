"""The quality report of synthetic data on the terminal."""

from __future__ import annotations

from rich.table import Table

from fastdraft.synthesize.quality import Quality


def quality_table(engine: str, log_probabilities: str, quality: Quality) -> Table:
    """The quality report as a table."""
    table = Table(title="Synthetic training data", show_header=False)
    for name, value in quality_fields(engine, log_probabilities, quality).items():
        table.add_row(name, value)
    return table


def quality_fields(engine: str, log_probabilities: str, quality: Quality) -> dict[str, str]:
    """The quality report as text, by name."""
    return {
        "engine": engine,
        "log-probabilities": log_probabilities,
        "completions": f"{quality.written:,} of {quality.asked:,} requested",
        **{f"rejected: {reason}": f"{count:,}" for reason, count in quality.refused.items()},
        **{f"left out: {reason}": f"{count:,}" for reason, count in quality.prompts_left_out.items()},
        "tokens": f"{quality.tokens:,}; trained on {quality.trained_fraction:.1%} of prompt and completion tokens",
        "completions by length in tokens": ", ".join(
            f"{length}: {count:,}" for length, count in quality.lengths.items()
        ),
        "truncated, empty": f"{quality.truncated_fraction:.1%}, {quality.empty_fraction:.1%}",
        "duplicates, exact and near": f"{quality.exact_duplicates:,}, {quality.near_duplicates:,}",
        "completions that loop": f"{quality.looping_fraction:.1%}; {quality.repeated_8grams:.1%} of 8-grams repeat",
        "nats per token": ", ".join(f"{nats:.2f} at T = {t}" for t, nats in quality.entropy_nats.items()) or "unknown",
        "languages": ", ".join(f"{name} {fraction:.1%}" for name, fraction in quality.languages.items()),
    }
