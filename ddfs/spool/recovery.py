"""What a crash left: done once, before anything is fetched. Blocks; runs in a thread.

A crash can fall between any two of these: the storage's steps of publishing, the reference
in the catalogue, the journal deleted.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace

from ddfs import errors
from ddfs.model import PublishedFile, SpoolReference, SpoolState
from ddfs.spool.journal import Journal
from ddfs.spool.ports import Ledger, Storage

log = logging.getLogger(__name__)


def recovered_references(storage: Storage, ledger: Ledger) -> list[SpoolReference]:
    """All references on *storage*, each put right and written down where it was not."""
    result = []
    for reference in ledger.references():
        if reference.primary != storage.name:
            continue
        right = _put_right(storage, reference)
        if right != reference:
            ledger.record_reference(right)
        result.append(right)
    return result


def _put_right(storage: Storage, reference: SpoolReference) -> SpoolReference:
    content_id = reference.content_id
    if reference.published is not None and storage.is_intact(reference.published):
        _discard_leftovers(storage, content_id)
        return replace(reference, published=storage.located(reference.published))
    published = _finish_publishing(storage, content_id)
    if published is not None:
        log.info("%s: a crash had interrupted its publishing; finished", published.path)
        return replace(
            reference,
            state=SpoolState.PUBLISHED,
            published=published,
            last_error=None,
            bytes_here=published.size,
            updated_at=time.time(),
        )
    if reference.published is not None:
        log.warning(
            "%s: the published file is gone or changed; it will be fetched again when used",
            reference.published.path,
        )
        reference = replace(
            reference, state=SpoolState.ABSENT, published=None, updated_at=time.time()
        )
    return replace(reference, bytes_here=_journaled_bytes(storage, content_id))


def _finish_publishing(storage: Storage, content_id: str) -> PublishedFile | None:
    try:
        return storage.finish_publishing(content_id)
    except errors.DdfsError as error:
        log.warning("%s", error)
        return None


def _journaled_bytes(storage: Storage, content_id: str) -> int:
    path = storage.journal_path(content_id)
    try:
        journal = Journal.open(path)
    except OSError as error:
        log.warning("%s: %s", path, error.strerror or error)
        return 0
    if journal is None:
        return 0
    journal.close()
    return journal.bytes_here


def _discard_leftovers(storage: Storage, content_id: str) -> None:
    """What a crash left after the reference was written."""
    try:
        storage.discard(content_id)
    except errors.DdfsError as error:
        log.warning("%s", error)
