"""Numbers as a reader wants them."""

from __future__ import annotations

_PREFIXES = ("B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB")


def counted(number: int, noun: str) -> str:
    """A number with what it counts.

    >>> counted(1, "round"), counted(3, "local step")
    ('1 round', '3 local steps')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def byte_text(count: float | None) -> str:
    """Decimal units, three digits; "-" for what was not measured.

    >>> byte_text(0), byte_text(999), byte_text(1_234_567), byte_text(340_000_000), byte_text(None)
    ('0 B', '999 B', '1.23 MB', '340 MB', '-')
    """
    if count is None:
        return "-"
    size = float(count)
    for prefix in _PREFIXES:
        if size < 999.5 or prefix == _PREFIXES[-1]:
            break
        size /= 1000
    if prefix == "B":
        return f"{size:.0f} B"
    return f"{size:.{2 if size < 9.995 else 1 if size < 99.95 else 0}f} {prefix}"


def time_text(seconds: float | None) -> str:
    """Two units at most.

    >>> [time_text(value) for value in (0.04, 9.96, 59.7, 83, 3_723, 190_000, None)]
    ['0.0 s', '10.0 s', '1 min 00 s', '1 min 23 s', '1 h 02 min', '2 d 04 h', '-']
    """
    if seconds is None:
        return "-"
    if seconds < 59.5:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24:02d} h"


def score_text(score: float | None, *, sign: bool = False) -> str:
    """Two decimals, as papers print them.

    >>> score_text(67.864), score_text(2.5, sign=True), score_text(-0.001, sign=True), score_text(None)
    ('67.86', '+2.50', '+0.00', '-')
    """
    if score is None:
        return "-"
    shown = round(score, 2) + 0.0  # no minus before a zero
    return f"{shown:+.2f}" if sign else f"{shown:.2f}"


def spread_text(mean: float | None, std: float | None, *, sign: bool = False) -> str:
    """Mean and deviation; the mean alone when no deviation is known.

    >>> spread_text(67.864, 0.312), spread_text(1.0, None, sign=True)
    ('67.86 ± 0.31', '+1.00')
    """
    text = score_text(mean, sign=sign)
    return text if mean is None or std is None else f"{text} ± {std:.2f}"


def amount_text(value: float | None, quantity: str) -> str:
    """An amount of steps, flops, bytes or seconds.

    >>> amount_text(2_000, "steps"), amount_text(1.5e12, "flops"), amount_text(3e6, "bytes"), amount_text(83, "seconds")
    ('2,000 steps', '1.50 TFLOP', '3.00 MB', '1 min 23 s')
    """
    if value is None:
        return "-"
    if quantity == "steps":
        return f"{value:,.0f} step{'' if value == 1 else 's'}"
    if quantity == "flops":
        number, _, prefix = byte_text(value).partition(" ")
        return f"{number} {prefix.removesuffix('B')}FLOP"
    return byte_text(value) if quantity == "bytes" else time_text(value)


def percent_text(value: float | None) -> str:
    """A deviation in per cent.

    >>> percent_text(-1.26), percent_text(0.0), percent_text(None)
    ('-1.3 %', '+0.0 %', '-')
    """
    return "-" if value is None else f"{round(value, 1) + 0.0:+.1f} %"
