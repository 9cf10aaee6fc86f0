"""What templates, their versions and deployed domains may be called. Pure."""

from __future__ import annotations

import re

from ddfs import errors

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")


def validate_template_name(name: str) -> str:
    """*name* itself, if a template may be called so."""
    if _NAME.fullmatch(name) is None:
        raise errors.InvalidValueError(
            f"{name[:140]!r} cannot be a template's name: use 1 to 128 letters, digits and "
            "._-+, starting with a letter or digit"
        )
    return name


# A domain's name that ddfs gives is also that of files, of libvirt's own beside ours, and of a host
# in the guest.
_MACHINE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,62}")


def validate_machine_name(name: str) -> str:
    """*name* itself, if a domain that is deployed may be called so."""
    if _MACHINE.fullmatch(name) is None:
        raise errors.InvalidValueError(
            f"{name[:140]!r} cannot be a domain's name here: use 1 to 63 of a-z, A-Z, 0-9 and "
            "._+-, starting with a letter or digit"
        )
    return name


# A version's number, as it stands behind the name; enough for one an hour for ever.
_VERSIONED = re.compile(r"([^@]*)@([1-9][0-9]{0,8})")


def split_version(name: str) -> tuple[str, int | None]:
    """``NAME@N`` as NAME and N; any other text as itself and None."""
    match = _VERSIONED.fullmatch(name)
    return (match[1], int(match[2])) if match else (name, None)


def version_name(family: str, number: int) -> str:
    """What version *number* of *family* is called: the first one has the plain name.

    An operator's names have no ``@``, so that no version can take the name of a template.
    """
    return family if number == 1 else f"{family}@{number}"
