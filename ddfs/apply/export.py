"""Declarations to a file that :mod:`ddfs.apply.files` reads back as they were."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from ddfs.declaration import SECRET_KEYS, Declaration, format_duration

_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")


def exported(declarations: Mapping[str, Declaration], *, with_secrets: bool) -> str:
    """TOML. Without secrets a comment stands where they are, and the file lacks them."""
    return "\n".join(
        "\n".join(_table(name, declaration.as_plain(), with_secrets)) + "\n"
        for name, declaration in declarations.items()
    )


def _table(name: str, plain: Mapping[str, Any], with_secrets: bool) -> Iterator[str]:
    yield f"[template.{name if _BARE.fullmatch(name) else _string(name)}]"
    for key, value in plain.items():
        if key in SECRET_KEYS and not with_secrets:
            yield f"# {key} = [{len(value)} not shown; export with --with-secrets]"
        else:
            yield f"{key} = {_value(format_duration(value) if key == 'check_every' else value)}"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return _string(value)


def _string(text: str) -> str:
    # A basic string escapes as JSON does, and DEL as well (TOML 1.0).
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
