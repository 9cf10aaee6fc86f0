"""What the README says of errors, settings and commands is what the code says."""

import dataclasses
import errno
import re
import tomllib
from pathlib import Path
from typing import Any

import typer

from ddfs import config, errors
from ddfs.cli.app import app

README = Path(__file__).resolve().parents[1] / "README.md"
PACKAGED_SETTINGS = README.parent / "contrib" / "service" / "ddfs.toml"

# Code in a block, which may be indented in a list.
FENCED = re.compile(r"^ *```.*?^ *```$", re.DOTALL | re.MULTILINE)


def error_rows() -> list[str]:
    """The table of errors, in the order of the tree."""
    rows: list[str] = []

    def walk(kind: type[errors.DdfsError]) -> None:
        below = kind.__subclasses__()
        if not below:
            number = f"`{errno.errorcode[kind.errno]}`"
            rows.append(f"| {kind.kind()} | {kind.exit_code} | {kind.http_status} | {number} |")
        for leaf in below:
            walk(leaf)

    walk(errors.DdfsError)
    return rows


def test_the_readme_has_every_error_with_its_codes() -> None:
    lines = README.read_text(encoding="utf-8").splitlines()
    start = lines.index("| error | exit | HTTP | errno |") + 2
    assert lines[start : start + len(error_rows())] == error_rows()


def settings_block() -> str:
    """The README's settings file, as an operator would copy it."""
    block = re.search(
        r"^( *)```toml\n(.*?mountpoint.*?)^ *```$", README.read_text(), re.DOTALL | re.MULTILINE
    )
    assert block is not None
    return "\n".join(line.removeprefix(block[1]) for line in block[2].splitlines())


def with_comments(text: str) -> str:
    """The same with every commented setting in force."""
    return re.sub(r"^# (?=\[|\w+ *=)", "", text, flags=re.MULTILINE)


def keys_of(document: dict[str, Any], prefix: str = "") -> set[str]:
    keys = set()
    for key, value in document.items():
        name = "NAME" if prefix in ("primary.", "host.") else key
        if isinstance(value, dict):
            keys |= keys_of(value, f"{prefix}{name}.")
        else:
            keys.add(prefix + key)
    return keys


def known_keys() -> set[str]:
    """Everything that an operator can set, named after where it stands in the file."""
    keys = set()
    for field in dataclasses.fields(config.Settings):
        default = getattr(config.Settings(), field.name)
        tables = {"primary": config.PrimarySettings, "hosts": config.HostSettings}
        if field.name in tables:
            table = "primary.NAME" if field.name == "primary" else "host.NAME"
            keys |= {f"{table}.{inner.name}" for inner in dataclasses.fields(tables[field.name])}
        elif dataclasses.is_dataclass(default):
            keys |= {f"{field.name}.{inner.name}" for inner in dataclasses.fields(default)}
        else:
            keys.add(field.name)
    return keys


def test_the_settings_in_the_readme_are_the_defaults() -> None:
    assert config.parse(tomllib.loads(settings_block())) == config.Settings()


def test_the_readme_names_every_setting() -> None:
    document = tomllib.loads(with_comments(settings_block()))
    assert known_keys() - keys_of(document) == {"primary.NAME.pool"}  # beside path, in words


def test_the_packaged_settings_are_defaults_and_nothing_else_is_in_force() -> None:
    text = PACKAGED_SETTINGS.read_text(encoding="utf-8")
    assert tomllib.loads(text) == {"socket_group": "ddfs"}
    config.parse(tomllib.loads(with_comments(text)))


def named_commands(text: str) -> list[tuple[str, str]]:
    """What follows ``ddfs`` in code, which is a command and perhaps its second word."""
    blocks = "\n".join(FENCED.findall(text))
    rest = FENCED.sub("", text)
    words = r"ddfs ([a-z]+)(?: ([a-z]+))?"
    return re.findall(rf"^(?:\$ )?{words}", blocks, re.MULTILINE) + re.findall(rf"`{words}", rest)


def test_every_command_in_the_readme_exists() -> None:
    commands: dict[str, Any] = typer.main.get_command(app).commands
    named = named_commands(README.read_text(encoding="utf-8"))
    assert len(named) > 50
    for first, second in named:
        assert first in commands
        below = getattr(commands[first], "commands", None)
        if second and below is not None:
            assert second in below, f"{first} {second}"


def test_every_link_within_the_readme_leads_to_a_heading() -> None:
    text = FENCED.sub("", README.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = set(re.findall(r"\]\(#([^)]*)\)", text))
    assert links
    assert links <= anchors
