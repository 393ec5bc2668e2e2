"""Numbers, times and texts as the page shows them; a text is shown, never obeyed."""

from __future__ import annotations

import unicodedata

from fastdraft.results.evaluation import Estimate, Gap
from fastdraft.system.energy import energy_text

# What would be obeyed or not be seen: control and format characters (of writing direction among them), halves of
# characters, private and unassigned ones, line and paragraph separators.
UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
SIGNS = {"\n": "⏎\n", "\t": "⇥\t", "\r": "␍"}


def visible(text: object) -> str:
    """A text in which everything that it holds is seen."""
    return "".join(map(_seen, str(text)))


def in_line(text: object) -> str:
    """The same in one line, with its first and last blanks seen."""
    inner = visible(text).replace("⏎\n", "⏎").replace("⇥\t", "⇥")
    body = inner.strip(" ")
    left = len(inner) - len(inner.lstrip(" "))
    return "␣" * left + body + "␣" * (len(inner) - len(body) - left if body else 0)


def _seen(letter: str) -> str:
    if letter in SIGNS:
        return SIGNS[letter]
    if unicodedata.category(letter) not in UNSEEN:
        return letter
    number = ord(letter)
    return chr(0x2400 + number) if number < 0x20 else f"⟨U+{number:04X}⟩"


def estimate(found: Estimate) -> str:
    """A rate's interval, which stands behind it."""
    return f"[{found.low:.3f}, {found.high:.3f}]"


def signed(found: Gap) -> str:
    """A difference with its interval."""
    return f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def duration(seconds: float | None) -> str:
    """In the unit that fits."""
    if seconds is None:
        return "–"
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def count(number: float | None) -> str:
    """With a letter for thousands, millions and billions."""
    if not number:
        return "–"
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:g}"


def size(number: float | None) -> str:
    """Bytes."""
    return "–" if number is None else f"{number / 1e9:.2g} GB"


def power(number: float | None) -> str:
    """FLOPs."""
    if number is None:
        return "–"
    mantissa, exponent = f"{number:.1e}".split("e")
    return f"{mantissa} × 10{''.join('⁰¹²³⁴⁵⁶⁷⁸⁹'[int(digit)] for digit in str(int(exponent)))}"


def energy(joules: float | None) -> str:
    """In the unit that fits."""
    return "–" if joules is None else energy_text(joules)


def share(number: float | None) -> str:
    """Per cent."""
    return "–" if number is None else f"{number:.1%}"


FILTERS = {
    **{"visible": visible, "in_line": in_line, "interval": estimate, "signed": signed, "duration": duration},
    **{"count": count, "size": size, "power": power, "share": share, "energy": energy},
}
