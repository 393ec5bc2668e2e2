"""What the target wrote, on a terminal: the quality report of synthesis."""

from __future__ import annotations

from rich.table import Table

from fastdraft.synthesize.quality import Quality


def written(engine: str, log_probabilities: str, found: Quality) -> Table:
    """Rows asked and written, why others were not, and what the rows are like."""
    table = Table(title="What the target wrote", show_header=False)
    for name, value in rows(engine, log_probabilities, found).items():
        table.add_row(name, value)
    return table


def rows(engine: str, log_probabilities: str, found: Quality) -> dict[str, str]:
    """The same in words, by what it is about."""
    return {
        "engine": engine,
        "log-probabilities": log_probabilities,
        "rows": f"{found.written:,} written of {found.asked:,} asked",
        **{f"refused: {reason}": f"{count:,}" for reason, count in found.refused.items()},
        **{f"left out: {reason}": f"{count:,}" for reason, count in found.prompts_left_out.items()},
        "tokens": f"{found.tokens:,}, {found.trained_fraction:.1%} of prompts and answers: trained on",
        "answers of so many tokens": ", ".join(f"{length}: {count:,}" for length, count in found.lengths.items()),
        "cut off by the limit, empty": f"{found.truncated_fraction:.1%}, {found.empty_fraction:.1%}",
        "duplicates, exact and near": f"{found.exact_duplicates:,}, {found.near_duplicates:,}",
        "answers that loop": f"{found.looping_fraction:.1%}; {found.repeated_8grams:.1%} of runs of 8 tokens repeat",
        "nats a token": ", ".join(f"{nats:.2f} at T = {t}" for t, nats in found.entropy_nats.items()) or "unknown",
        "languages": ", ".join(f"{name} {fraction:.1%}" for name, fraction in found.languages.items()),
    }
