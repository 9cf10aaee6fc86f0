"""The registered templates of this host: names, and what they are bound to.

Joins the catalogue (what is registered), the spool (how far it is here) and the stored
heads, and answers from memory: also the mount, through :mod:`ddfs.fuse.shown`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import trio

from ddfs import errors, source
from ddfs.declaration import Declaration
from ddfs.model import (
    MAX_SIZE,
    ByteRange,
    ImageFormat,
    Manifest,
    PublishedFile,
    Template,
)
from ddfs.names import validate_template_name
from ddfs.spool.fetching import Order
from ddfs.spool.holding import HoldingStatus
from ddfs.spool.ports import Storage
from ddfs.spool.rest import Demand
from ddfs.spool.spool import Spool
from ddfs.templates.first_look import FirstLook
from ddfs.templates.index import Index
from ddfs.templates.ports import Catalogue, HeadInspector, Heads
from ddfs.templates.recorder import RecordedInquiries, RecordedInquiry, Recorder, Resolved
from ddfs.templates.registration import Registration, same_content
from ddfs.templates.signatures import Signatures
from ddfs.versions import SourceState

# Registrations under way, however many are asked for. Measured with 1,000 templates on mirrors
# that take 20 ms to answer: 8 at once take 14 s and `ls -l` of the mount 0.1 s meanwhile; 32
# take 13 s, and a listing 5.
REGISTRATIONS_AT_ONCE: Final = 8

log = logging.getLogger(__name__)


class Templates:
    """All templates of this host. Everything but registering and removing is from memory.

    ``on_added(template)`` and ``on_removed(template)`` are called in the event loop, after
    the change is durable.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        spool: Spool,
        heads: Heads,
        inquiries: RecordedInquiries,
        inspect_head: HeadInspector,
        look: source.Look,
        *,
        location: str | None,
        keyring: str | None = None,
        ledger_limiter: trio.CapacityLimiter,
        on_added: Callable[[Template], None],
        on_removed: Callable[[Template], None],
    ) -> None:
        self._catalogue = catalogue
        self._spool = spool
        self._heads = heads
        self._inquiries = inquiries
        self._first_look = FirstLook(inspect_head, look)
        self._location = location
        self._keyring = keyring
        self.signatures = Signatures(spool, self._asking, keyring)
        self._limiter = ledger_limiter
        self._on_added = on_added
        self._on_removed = on_removed
        self._index = Index()
        self._declarations: dict[str, Declaration] = {}
        # What is known of the sources of families; checks write it, see versions.py.
        self.source_states: dict[str, SourceState] = {}
        self._changing: dict[str, trio.Lock] = {}
        # Each takes threads, memory for a document, and a second of the event loop in
        # parts: others have to get on, and so have the mirrors.
        self.registering = trio.CapacityLimiter(REGISTRATIONS_AT_ONCE)

    async def load(self) -> None:
        """Read the catalogue, and go on with the fetches that the last daemon was running."""
        for template in await trio.to_thread.run_sync(
            self._catalogue.templates, limiter=self._limiter
        ):
            self._index.add(template)
        self._declarations = await trio.to_thread.run_sync(
            self._catalogue.all_declarations, limiter=self._limiter
        )
        for template in self.all():
            if self._spool.was_interrupted(template.content_id):
                self._spool.demand(order_for(template))

    # -- looking ---------------------------------------------------------------------------

    def all(self) -> Sequence[Template]:
        """All templates, in order of row."""
        return self._index.all()

    def get(self, name: str) -> Template:
        """The template called exactly *name*; :class:`errors.UnknownTemplateError`."""
        template = self._index.by_name(name)
        if template is None:
            raise errors.UnknownTemplateError(
                f"no template is called {name!r}; ddfs template list shows those there are"
            )
        return template

    def newest(self, name: str) -> Template:
        """The template that a person means by *name*: see :meth:`Index.newest`."""
        return self._index.newest(name)

    def versions(self, family: str) -> Sequence[Template]:
        """All versions of a family, oldest first."""
        return self._index.versions(family)

    def families(self) -> Sequence[str]:
        """The names without versions, each once."""
        return self._index.families()

    def declaration(self, template: Template) -> Declaration:
        """What is declared about it; from memory."""
        return self._declarations[template.name]

    def by_file_name(self, file_name: str) -> Template | None:
        """The template of that name in the pool."""
        return self._index.by_file_name(file_name)

    def by_row(self, row: int) -> Template | None:
        """The template of that row."""
        return self._index.by_row(row)

    def with_content(self, content_id: str) -> Sequence[Template]:
        """All names of one content."""
        return self._index.with_content(content_id)

    def holding(self, template: Template) -> HoldingStatus:
        """How far it is here; of a packed one, ``bytes_here`` in proportion to its size."""
        holding = self._spool.holding(template.content_id)
        if template.packed_size is None or holding.published is not None:
            return holding
        here = holding.bytes_here * template.size // max(1, template.packed_size)
        return replace(holding, bytes_here=here)

    def link_of(self, template: Template) -> str | None:
        """Where the symlink leads that stands in its place; None while it is a file.

        Nobody can be shown a file whose size is not known: a reader would take its end for
        the end of the image. Its name leads to where it will stand, and to nothing before.
        """
        published = self.published(template)
        if published is not None:
            return published.path
        return None if template.size_is_known else self._place_of(template)

    def _place_of(self, template: Template) -> str:
        return self._spool.place_of(template.published_name, template.primary)

    def note_unpacked(self, content_id: str) -> None:
        """Learn the size of what was published, where it was not known before."""
        published = self._spool.published(content_id)
        if published is None:
            return
        for template in self.with_content(content_id):
            if not template.size_is_known:
                self._index.remove(template)
                self._index.add(_with_size(template, published.size))

    def published(self, template: Template) -> PublishedFile | None:
        """Its complete file, if there is one; from memory."""
        return self._spool.published(template.content_id)

    def stored_at(self, path: str, device: int = 0, inode: int = 0) -> Template | None:
        """The template of which that is a published file, on whichever primary storage.

        Known by its path, or by which file it is (``device`` and ``inode`` 0: not known).
        """
        for content_id, _, file in self._spool.stored():
            is_same = (device, inode) != (0, 0) and (file.device, file.inode) == (device, inode)
            named = self.with_content(content_id)
            if named and (is_same or file.path == path):
                return named[0]
        return None

    def is_fetching(self, template: Template) -> bool:
        """Whether its fetch runs."""
        return self._spool.is_fetching(template.content_id)

    # -- registering -----------------------------------------------------------------------

    async def add(self, registration: Registration) -> Template:
        """Resolve a source, look at the head of its image, and write both down.

        The same name with the same content is the template that is there, reached from now
        on as this registration says; with other content it is
        :class:`errors.TemplateExistsError`: see
        :meth:`ddfs.templates.versions.Versions.update`. Nothing is kept of a source that
        fails or is refused.
        """
        name = validate_template_name(registration.name)
        async with self.changing(name), self.registering:
            resolved = await self.resolve(registration.declaration)
            versions = self.versions(name)
            if versions:
                existing = same_content(versions, resolved.manifest, registration)
                return await self._reach(existing, registration.declaration, resolved.manifest)
            return await self.register(registration, resolved)

    async def _reach(self, existing: Template, asked: Declaration, manifest: Manifest) -> Template:
        """Use the access of *asked* from now on, if it has any and is for the same source: the
        way in which a login is changed. One that asks for a signature counts as a whole.
        """
        known = self.declaration(existing)
        is_same_source = known.source == asked.source
        access = asked.access if asked.access or not is_same_source else known.access
        if manifest.signature not in (None, existing.signature):
            every, primary = asked.check_every, asked.primary
            stricter = replace(
                asked,
                access=access,
                check_every=known.check_every if every is None else every,
                primary=known.primary if primary is None else primary,
            )
            return await self.declare(existing, stricter, manifest.signature)
        if not is_same_source or access == known.access:
            return existing
        return await self.declare(existing, replace(known, access=access), existing.signature)

    def _asking(self, content_id: str) -> Sequence[tuple[str | None, Declaration]]:
        """The signature and the declaration of each name of a content."""
        return [(t.signature, self.declaration(t)) for t in self.with_content(content_id)]

    async def resolve(self, declaration: Declaration) -> Resolved:
        """What a source is now, and what its servers said of the documents that decide."""
        inquiry = await self.inquiry(declaration)
        recorder = Recorder(inquiry)
        manifest = await source.resolve(
            declaration, documents=recorder, location=self._location, keyring=self._keyring
        )
        return Resolved(
            inquiry.attributed(manifest), inquiry, recorder.seen, recorder.has_only_looked
        )

    async def inquiry(self, declaration: Declaration) -> RecordedInquiry:
        """What asks a source, with what is declared about its access."""
        return await self._inquiries.inquiry(declaration)

    async def register(self, registration: Registration, resolved: Resolved) -> Template:
        """Look at the head of the image and write it down under a name that is free.

        The caller holds :meth:`changing` of the family.
        """
        declared, manifest = registration.declaration, resolved.manifest
        if manifest.size is None:
            raise errors.DocumentError(f"{declared.source}: nobody says how large it is")
        first = await self._first_look.at(manifest, declared, resolved.inquiry)
        head, manifest, facts = first.head, first.manifest, first.facts
        for failure in head.failures:
            log.warning("%s: %s", registration.name, failure)
        virtual_size = facts.virtual_size if facts.virtual_size != MAX_SIZE else None
        content_id = manifest.content_id

        def write_down() -> Template:
            return self._catalogue.add_template(
                name=registration.name,
                format=facts.format,
                manifest=manifest,
                declaration=declared,
                virtual_size=virtual_size,
                added_at=time.time(),
                head_is_verified=head.verified,
                seen=resolved.seen,
            )

        # The head goes with the last name of a content, which may be removed meanwhile.
        async with self.changing(content_id), self.signatures.binding(manifest, declared):
            # A verified head is not replaced by one that a mirror only claims.
            if head.verified or not self.with_content(content_id):
                await trio.to_thread.run_sync(self._heads.put, content_id, head.data)
            with trio.CancelScope(shield=True):
                template = await trio.to_thread.run_sync(write_down, limiter=self._limiter)
            self._index.add(template)
            self._declarations[template.name] = declared
        self.source_states[template.family] = SourceState(seen=resolved.seen)
        for note in manifest.notes:
            log.warning("%s: %s", registration.name, note)
        log.info("%s: registered from %s", template.file_name, declared.source)
        self._on_added(template)
        return template

    async def remove(self, name: str, *, purge: bool) -> None:
        """Forget a name; with *purge* also the published file, if no other name has it.

        Partial data goes in any case, with the last name.

        The caller has made sure that no domain needs it. Raises
        :class:`errors.TemplateInUseError` while it is being fetched.
        """
        template = self.get(name)
        async with self.changing(template.family):
            template = self.get(name)
            async with self.changing(template.content_id):
                is_last = len(self.with_content(template.content_id)) == 1
                if is_last and self._spool.is_fetching(template.content_id):
                    raise errors.TemplateInUseError(
                        f"{template.file_name} is being fetched; end that with: ddfs cancel "
                        f"{template.exact_name}"
                    )
                with trio.CancelScope(shield=True):
                    # First: nobody may come to want what is going.
                    self._index.remove(template)
                    try:
                        if is_last and (purge or not self._spool.is_stored(template.content_id)):
                            await self._spool.purge(template.content_id)
                        forget = self._catalogue.remove_template
                        await trio.to_thread.run_sync(forget, name, limiter=self._limiter)
                    except BaseException:
                        self._index.add(template)
                        raise
                    self._declarations.pop(name, None)
                    if not self.versions(template.family):
                        self.source_states.pop(template.family, None)
                    self._on_removed(template)
                    if is_last:
                        await trio.to_thread.run_sync(self._heads.remove, template.content_id)
                log.info("%s: removed", template.file_name)

    async def discard(self, name: str) -> None:
        """Delete what an unfinished fetch of *name* left; nothing where it is published.

        Raises :class:`errors.TemplateInUseError` while it is being fetched.
        """
        template = self.newest(name)
        async with self.changing(template.family):
            if not self._spool.is_stored(template.content_id):
                with trio.CancelScope(shield=True):
                    await self._spool.purge(template.content_id)

    async def declare(
        self, template: Template, declaration: Declaration, signature: str | None
    ) -> Template:
        """Write down another declaration, and the signature that is asked for; the content
        stays what it is.

        The caller holds :meth:`changing` of the family. Raises why what is published is not
        signed so; then nothing has changed.
        """
        known = self.declaration(template)
        before = known.keyring, known.no_keyring, template.signature
        if (declaration.keyring, declaration.no_keyring, signature) == before:
            return await self._write_declaration(template, declaration, signature)
        manifest = await trio.to_thread.run_sync(
            self._catalogue.manifest, template.content_id, limiter=self._limiter
        )
        async with self.signatures.binding(replace(manifest, signature=signature), declaration):
            changed = await self._write_declaration(template, declaration, signature)
        self._spool.forget_failure(template.content_id)
        return changed

    async def _write_declaration(
        self, template: Template, declaration: Declaration, signature: str | None
    ) -> Template:
        write = self._catalogue.declare
        with trio.CancelScope(shield=True):
            changed = await trio.to_thread.run_sync(
                write, template.name, declaration, signature, limiter=self._limiter
            )
        self._index.remove(template)
        self._index.add(changed)
        self._declarations[template.name] = declaration
        return changed

    @asynccontextmanager
    async def changing(self, family: str) -> AsyncIterator[None]:
        """One change of a name, in whichever version, or else of all names of a content."""
        lock = self._changing.setdefault(family, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked() and self._changing.get(family) is lock:
                del self._changing[family]

    # -- bytes -----------------------------------------------------------------------------

    def demand(
        self,
        template: Template,
        demand: Demand,
        seeds: Sequence[Path] = (),
        primary: str | None = None,
    ) -> None:
        """Start its fetch, unless it is here, on its way, or rests. Never raises.

        *primary* is where to, if not to its own primary storage.
        """
        order = order_for(template)
        self._spool.demand(replace(order, primary=primary or order.primary), demand, seeds)

    @property
    def primaries(self) -> tuple[str, ...]:
        """The primary storages, the preferred one first."""
        return self._spool.primaries

    def storage_of(self, template: Template) -> Storage:
        """The primary storage of its published file."""
        return self._spool.storage_of(template.content_id)

    async def copy(self, template: Template, primary: str) -> None:
        """Have what is published somewhere on *primary* as well; raises why it is not."""
        await self._spool.copy(order_for(template), primary)

    def cancel(self, template: Template) -> bool:
        """End its fetch, if one runs."""
        return self._spool.cancel(template.content_id)

    async def wait_published(self, template: Template) -> None:
        """Wait until it is published; raises why it will not be."""
        await self._spool.wait_published(order_for(template))

    async def confirm_published(self, template: Template) -> bool:
        """Whether it is published, looking at the file itself."""
        return await self._spool.confirm_published(template.content_id) is not None

    async def read(self, template: Template, wanted: ByteRange) -> bytes:
        """Verified bytes, waiting for them. A verified head is here already."""
        if template.head_is_verified:
            head = self.read_head(template, wanted.start, len(wanted))
            if head is not None:
                return head
        return await self._spool.read(order_for(template), wanted)

    def read_head(self, template: Template, offset: int, length: int) -> bytes | None:
        """Bytes wholly inside the stored head, else None."""
        data = self._heads.read(template.content_id, offset, length)
        is_inside = len(data) == length or self._heads.size(template.content_id) >= template.size
        return data if is_inside else None

    def verified_head(self, template: Template) -> Callable[[int], bytes] | None:
        """What reads so many first bytes of its head, in any thread; None if not verified."""
        read = partial(self._heads.read, template.content_id, 0)
        return read if template.head_is_verified else None


def order_for(template: Template) -> Order:
    """What to fetch for *template*."""
    return Order(
        content_id=template.content_id,
        size=template.size,
        published_name=template.published_name,
        format=template.format,
        head_is_verified=template.head_is_verified,
        is_readable_early=template.is_readable_early,
        primary=template.primary,
    )


def _with_size(template: Template, size: int) -> Template:
    is_plain = template.format in (ImageFormat.RAW, ImageFormat.ISO)
    virtual_size = size if is_plain else template.virtual_size
    return replace(template, size=size, size_is_known=True, virtual_size=virtual_size)
