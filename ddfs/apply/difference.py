"""How what is declared differs from what is registered, and the steps from one to the other."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ddfs.declaration import SECRET_KEYS, Declaration, format_duration


class Kind(enum.Enum):
    """What a step does; the value is how a difference is shown."""

    ADD = "+"
    CHANGE = "~"
    REMOVE = "-"


@dataclass(frozen=True, slots=True)
class Change:
    """One key that is different; values as people may see them, None where there is none."""

    key: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class Step:
    """What to do about one name. ``declaration`` is None for a removal."""

    kind: Kind
    name: str
    declaration: Declaration | None
    changes: tuple[Change, ...] = ()


def difference(
    wanted: Mapping[str, Declaration], there: Mapping[str, Declaration], *, prune: bool
) -> list[Step]:
    """The steps that make what is *there* like what is *wanted*: none if it is.

    What is there and not wanted is removed with *prune* alone, and last: a template that has
    another name from now on is then not fetched again.
    """
    steps = []
    for name, declaration in wanted.items():
        if name not in there:
            steps.append(Step(Kind.ADD, name, declaration, _changes(None, declaration)))
        elif there[name] != declaration:
            changes = _changes(there[name], declaration)
            steps.append(Step(Kind.CHANGE, name, declaration, changes))
    if prune:
        steps += [Step(Kind.REMOVE, name, None) for name in there if name not in wanted]
    return steps


def shown(step: Step) -> Iterator[str]:
    """The step for people, a line for the name and one for each key."""
    yield f"{step.kind.value} {step.name}"
    for change in step.changes:
        if change.before is not None:
            yield f"  - {change.key} = {change.before}"
        if change.after is not None:
            yield f"  + {change.key} = {change.after}"


def _changes(before: Declaration | None, after: Declaration) -> tuple[Change, ...]:
    old, new = before.as_plain() if before else {}, after.as_plain()
    return tuple(
        Change(key, _text(key, old.get(key)), _text(key, new.get(key)))
        for key in (*new, *(key for key in old if key not in new))
        if old.get(key) != new.get(key)
    )


def _text(key: str, value: object) -> str | None:
    if value is None:
        return None
    if key in SECRET_KEYS:
        return "(secret)"
    # As it is written in a file.
    return format_duration(value) if key == "check_every" and isinstance(value, int) else str(value)
