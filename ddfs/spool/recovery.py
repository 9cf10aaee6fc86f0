"""What a crash left: done once, before anything is fetched. Blocks; runs in a thread.

A crash can fall between any two of these steps of publishing: intent in the journal,
rename, flags, reference in the catalogue, journal deleted. The intent names the file and
its inode, so that the finished one is recognised without reading it.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path

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
    if reference.published is not None and storage.is_intact(reference.published):
        _forget_leftovers(storage, reference.content_id)
        return reference
    journal = _journal(storage, reference.content_id)
    try:
        if journal is not None and (published := _finished(storage, journal)):
            log.info("%s: a crash had interrupted its publishing; finished", published.path)
            return _published(reference, published, journal)
        bytes_here = journal.bytes_here if journal is not None else 0
    finally:
        if journal is not None:
            journal.close()
    if reference.published is not None:
        log.warning(
            "%s: the published file is gone or changed; it will be fetched again when used",
            reference.published.path,
        )
        return replace(
            reference, state=SpoolState.ABSENT, published=None, bytes_here=bytes_here,
            updated_at=time.time(),
        )  # fmt: skip
    if reference.bytes_here != bytes_here:
        return replace(reference, bytes_here=bytes_here)
    return reference


def _journal(storage: Storage, content_id: str) -> Journal | None:
    try:
        return Journal.open(storage.journal_path(content_id))
    except OSError as error:
        log.warning("%s: %s", storage.journal_path(content_id), error.strerror or error)
        return None


def _finished(storage: Storage, journal: Journal) -> PublishedFile | None:
    """The published file that the journal's intent speaks of, every step of it done."""
    intent = journal.intent
    if intent is None:
        return None
    found = storage.identify(storage.path / intent.name)
    if found is None or (found.inode, found.size, found.mtime_ns) != (
        intent.inode,
        intent.size,
        intent.mtime_ns,
    ):
        return None
    try:
        return storage.publish(storage.partial_path(journal.header.content_id), intent.name)
    except errors.DdfsError as error:
        log.warning("%s", error)
        return None


def _published(
    reference: SpoolReference, published: PublishedFile, journal: Journal
) -> SpoolReference:
    journal.path.unlink(missing_ok=True)
    return replace(
        reference, state=SpoolState.PUBLISHED, published=published, last_error=None,
        bytes_here=published.size, updated_at=time.time(),
    )  # fmt: skip


def _forget_leftovers(storage: Storage, content_id: str) -> None:
    """The journal outlives its data by a moment; the data never outlives the rename."""
    for leftover in (storage.journal_path(content_id), storage.partial_path(content_id)):
        _unlink(leftover)


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s: %s", path, error.strerror or error)
