"""Template filters of the page: numbers with units, and text with its invisible characters made visible."""

from __future__ import annotations

from fastdraft.results.formatting import bounds, signed_interval
from fastdraft.system.energy import energy_text
from fastdraft.system.terminal import visible_character

SIGNS = {"\n": "⏎\n", "\t": "⇥\t", "\r": "␍"}


def visible(text: object) -> str:
    """The text with a visible sign for each invisible character."""
    return "".join(SIGNS.get(character) or visible_character(character) for character in str(text))


def in_line(text: object) -> str:
    """`visible` text on one line, its leading and trailing blanks shown as ␣."""
    inner = visible(text).replace("⏎\n", "⏎").replace("⇥\t", "⇥")
    body = inner.strip(" ")
    left = len(inner) - len(inner.lstrip(" "))
    return "␣" * left + body + "␣" * (len(inner) - len(body) - left if body else 0)


def duration(seconds: float | None) -> str:
    """`1.5 h`, in the unit that fits."""
    if seconds is None:
        return "–"
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def count(number: float | None) -> str:
    """`50 M`, with a letter for thousands, millions and billions."""
    if not number:
        return "–"
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:g}"


def gigabytes(number: float | None) -> str:
    """Bytes as `1.5 GB`."""
    return "–" if number is None else f"{number / 1e9:.2g} GB"


def scientific(number: float | None) -> str:
    """`1.5 × 10¹⁸`; for FLOPs."""
    if number is None:
        return "–"
    mantissa, exponent = f"{number:.1e}".split("e")
    return f"{mantissa} × 10{''.join('⁰¹²³⁴⁵⁶⁷⁸⁹'[int(digit)] for digit in str(int(exponent)))}"


def energy(joules: float | None) -> str:
    """`1.9 Wh`, in the unit that fits."""
    return "–" if joules is None else energy_text(joules)


def percent(fraction: float | None) -> str:
    """`12.3%`."""
    return "–" if fraction is None else f"{fraction:.1%}"


FILTERS = {
    "visible": visible,
    "in_line": in_line,
    "interval": bounds,
    "signed": signed_interval,
    "duration": duration,
    "count": count,
    "gigabytes": gigabytes,
    "scientific": scientific,
    "energy": energy,
    "percent": percent,
}
