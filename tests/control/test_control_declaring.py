"""What a file declares is checked as what is typed."""

from __future__ import annotations

from typing import Any, cast

import pytest

from ddfs import errors
from ddfs.control.keeping import HostKeeping
from ddfs.control.messages import AddTemplate
from ddfs.control.versioning import Versioning

NOBODY = cast("Any", None)


class Templates:
    primaries = ("default", "fast")


async def test_a_primary_storage_that_is_not_there_is_refused() -> None:
    """Else it would be fetched to the default one, and nobody told."""
    keeping = HostKeeping(cast("Any", Templates()), NOBODY, NOBODY, NOBODY, {})
    versioning = Versioning(NOBODY, NOBODY, NOBODY, NOBODY, keeping.check_primary)
    request = AddTemplate("debian-12", "https://example.org/x", primary="fats", unverified=True)
    with pytest.raises(errors.InvalidValueError, match="'fats'; the settings have default"):
        await versioning.declare("debian-12", request)
