"""Text for people: one line, sizes, lengths of time."""

from __future__ import annotations

from typing import Final

_UNITS: Final = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def one_line(text: str) -> str:
    """*text* in one line, and harmless to a terminal: parts of it may come from a mirror."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))


def named(name: str, text: str) -> str:
    """*text* about *name*, which it may name already."""
    return text if text.startswith(f"{name}: ") else f"{name}: {text}"


def format_image_size(size: int, packed_size: int | None, size_is_known: bool) -> str:
    """The size of an image, or what is known of it while it is packed."""
    if size_is_known or packed_size is None:
        return format_size(size)
    return f"{format_size(packed_size)} packed"


def format_size(count: float) -> str:
    """*count* bytes as people read it, for instance ``1.5 GiB``."""
    if count < 1024:
        return f"{count:.0f} B"
    for unit in _UNITS:
        count /= 1024
        # What would round to 1024.0 is 1.0 of the next unit.
        if count < 1023.95 or unit == _UNITS[-1]:
            break
    return f"{count:.1f} {unit}"


def format_seconds(seconds: float | None) -> str:
    """A length of time as people read it, for instance ``2 min 5 s``; None is a dash."""
    if seconds is None:
        return "-"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
