import threading
from dataclasses import replace

import pytest
from catalogue_values import add, digest, manifest, statements
from sqlalchemy import insert

from ddfs import errors
from ddfs.catalogue import rows, schema
from ddfs.catalogue.catalogue import MAX_MIRRORS, Catalogue
from ddfs.declaration import Declaration
from ddfs.model import (
    Digest,
    HashAlgorithm,
    ImageFormat,
    Manifest,
    MiB,
    Mirror,
    Packing,
    PackingKind,
    PieceMap,
    PublishedFile,
    SpoolReference,
    SpoolState,
    unverified_id,
)

PUBLISHED = PublishedFile("/pool/debian-12@0123.qcow2", 2**64 - 1, 2**63 + 7, 10 * MiB, 17 * 10**17)


def reference(content_id, state=SpoolState.FETCHING, **more):
    return SpoolReference(content_id, "default", state, 4 * MiB, 1700000001.5, **more)


def test_catalogue_keeps_everything_over_a_restart(tmp_path):
    whole = Manifest(
        "öffentlich %.iso",
        3 * MiB,
        (Digest(HashAlgorithm.MD5, "0" * 32), digest(1)),
        manifest(size=3 * MiB).pieces,
        manifest(urls=("https://b/x", "https://a/x?y=%20&z")).mirrors,
        size_is_stated=False,
        notes=("a torrent was passed over", "ü"),
    )
    first = Catalogue.open(tmp_path)
    added = add(first, "debian-12", whole, virtual_size=None, format=ImageFormat.ISO)
    done = reference(whole.content_id, SpoolState.PUBLISHED, published=PUBLISHED, last_error="once")
    first.record_reference(done)
    first.close()
    second = Catalogue.open(tmp_path)
    assert second.templates() == [added]
    assert second.manifest(added.content_id) == whole
    assert second.references() == [done]
    assert (added.size, added.virtual_size, added.format) == (3 * MiB, None, ImageFormat.ISO)
    assert (added.added_at, added.head_is_verified) == (1700000000.25, True)
    assert not added.is_readable_early
    second.close()


def test_catalogue_file_and_directory_are_for_the_owner_alone(catalogue):
    add(catalogue)
    assert catalogue.path.stat().st_mode & 0o777 == 0o600
    assert catalogue.path.parent.stat().st_mode & 0o777 == 0o700
    wal = catalogue.path.with_name("catalogue.db-wal")
    assert wal.stat().st_mode & 0o777 == 0o600


def test_catalogue_is_readable_early_as_the_manifest_says(catalogue):
    kinds = [(True, True), (True, False), (False, True), (False, False)]
    for number, (pieces, stated) in enumerate(kinds):
        of = manifest(number, pieces=pieces, size_is_stated=stated)
        assert add(catalogue, f"t{number}", of).is_readable_early == of.is_readable_early


def test_catalogue_a_taken_name_changes_nothing(catalogue):
    add(catalogue)
    before = catalogue.templates(), catalogue.manifest(manifest().content_id)
    with pytest.raises(errors.TemplateExistsError, match=r"debian-12 .* with this content"):
        add(catalogue, of=manifest(urls=("https://new/x",)))
    with pytest.raises(errors.TemplateExistsError, match=r"with other content; a name is bound"):
        add(catalogue, of=manifest(2))
    assert (catalogue.templates(), catalogue.manifest(manifest().content_id)) == before
    with pytest.raises(errors.UnknownTemplateError):
        catalogue.manifest(manifest(2).content_id)


def test_catalogue_rows_never_come_back(catalogue):
    seen = set()
    for _ in range(5):
        template = add(catalogue)
        assert template.row not in seen
        seen.add(template.row)
        assert catalogue.remove_template("debian-12") == template
    assert catalogue.templates() == []


def test_catalogue_unknown_template(catalogue):
    with pytest.raises(errors.UnknownTemplateError, match="no template is called 'nothing'"):
        catalogue.remove_template("nothing")


def test_catalogue_two_names_of_one_content_share_manifest_and_reference(catalogue):
    one = add(catalogue, "one")
    two = add(catalogue, "two", manifest(urls=("https://b/x", "https://c/x")))
    assert one.content_id == two.content_id
    catalogue.record_reference(reference(one.content_id))
    catalogue.remove_template("one")
    urls = [mirror.url for mirror in catalogue.manifest(one.content_id).mirrors]
    assert urls == ["https://a/x", "https://b/x", "https://c/x"]
    assert len(catalogue.references()) == 1
    catalogue.remove_template("two")
    assert catalogue.references() == []
    with pytest.raises(errors.UnknownTemplateError):
        catalogue.manifest(one.content_id)


def test_catalogue_a_published_content_stays_known_without_a_name(catalogue):
    added = add(catalogue)
    done = reference(added.content_id, SpoolState.PUBLISHED, published=PUBLISHED)
    catalogue.record_reference(done)
    catalogue.remove_template("debian-12")
    assert catalogue.references() == [done]
    again = add(catalogue, "debian-12")
    assert again.row != added.row
    catalogue.remove_template("debian-12")
    catalogue.forget_reference(added.content_id, "default")
    with pytest.raises(errors.UnknownTemplateError):
        catalogue.manifest(added.content_id)
    catalogue.forget_reference(added.content_id, "default")


def test_catalogue_forgetting_the_reference_keeps_a_content_with_a_name(catalogue):
    added = add(catalogue)
    catalogue.record_reference(reference(added.content_id))
    catalogue.forget_reference(added.content_id, "default")
    assert catalogue.references() == []
    assert catalogue.manifest(added.content_id) == manifest()


def test_catalogue_reference_is_replaced_whole(catalogue):
    added = add(catalogue)
    published = reference(added.content_id, SpoolState.PUBLISHED, published=PUBLISHED)
    failed = reference(added.content_id, SpoolState.FAILED, last_error="all mirrors failed")
    for each in (failed, published, failed):
        catalogue.record_reference(each)
        assert catalogue.references() == [each]
    catalogue.record_reference(reference("sha-256:" + "0" * 64))
    assert catalogue.references() == [failed]


def test_catalogue_merge_takes_pieces_and_size_only_where_there_were_none(catalogue):
    plain = manifest(pieces=False, size_is_stated=False)
    assert not add(catalogue, of=plain).is_readable_early
    catalogue.merge_mirrors(plain.content_id, manifest(urls=("https://c/x",)))
    merged = catalogue.manifest(plain.content_id)
    assert merged.pieces == manifest().pieces
    assert merged.size_is_stated
    assert [mirror.url[8] for mirror in merged.mirrors] == ["a", "b", "c"]
    assert catalogue.templates()[0].is_readable_early
    catalogue.merge_mirrors(plain.content_id, manifest(pieces=False, urls=()))
    assert catalogue.manifest(plain.content_id) == merged
    with pytest.raises(errors.DocumentError, match="one of the two sources is wrong"):
        catalogue.merge_mirrors(plain.content_id, manifest(size=11 * MiB))
    with pytest.raises(errors.DocumentError, match="one of the two sources is wrong"):
        add(catalogue, "liar", manifest(size=11 * MiB))
    assert catalogue.manifest(plain.content_id) == merged
    assert len(catalogue.templates()) == 1
    with pytest.raises(ValueError):
        catalogue.merge_mirrors(plain.content_id, manifest(2))


def test_catalogue_mirrors_do_not_grow_without_end(catalogue):
    added = add(catalogue)
    for start in range(0, MAX_MIRRORS + 300, 300):
        urls = tuple(f"https://m/{number}" for number in range(start, start + 300))
        catalogue.merge_mirrors(added.content_id, manifest(urls=urls))
    kept = [mirror.url for mirror in catalogue.manifest(added.content_id).mirrors]
    assert len(kept) == len(set(kept)) == MAX_MIRRORS
    assert kept[0] == "https://a/x"


def test_catalogue_needs_a_size(catalogue):
    unsized = Manifest("x", None, (digest(1),), None, manifest().mirrors, size_is_stated=False)
    with pytest.raises(ValueError, match="without a size"):
        add(catalogue, of=unsized)
    assert catalogue.templates() == []


def test_catalogue_from_many_threads(catalogue):
    shared = manifest()
    failures = []

    def work(number):
        try:
            add(catalogue, f"t{number}", manifest(urls=(f"https://{number}/x",)))
            catalogue.record_reference(reference(shared.content_id))
            catalogue.templates()
            catalogue.manifest(shared.content_id)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(catalogue.templates()) == 16
    assert len(catalogue.manifest(shared.content_id).mirrors) == 16


def test_catalogue_opens_and_lists_10_000_templates(tmp_path):
    first = Catalogue.open(tmp_path)
    contents = [manifest(number, size=100 * MiB) for number in range(10_000)]
    with first._engine.begin() as connection:
        connection.execute(insert(schema.content), [rows.content_values(m) for m in contents])
        templates = [
            {"name": f"t{number}", "format": "qcow2", "content_id": m.content_id, "source": "x"}
            | {"virtual_size": 1, "added_at": 1.0, "head_is_verified": True}
            for number, m in enumerate(contents)
        ]
        connection.execute(insert(schema.template), templates)
    first.close()
    opened = []

    def listing():
        opened.append(Catalogue.open(tmp_path))
        assert len(opened[0].templates()) == 10_000

    said = statements(listing)
    opened[0].close()
    # Not one for each; how long they take is for contrib/bench to say.
    assert len(said) < 100


def test_a_declaration_is_kept_whole(catalogue):
    declared = Declaration.from_plain(
        {"source": "https://a/x", "headers": ["A: b"], "check_every": "1d", "size": 5}
    )
    add(catalogue, "one", declaration=declared)
    assert catalogue.all_declarations() == {"one": declared}


def test_a_packed_content_comes_back_and_learns_what_came_out(catalogue):
    checksum = digest("out")
    packing = Packing(PackingKind.ZIP, "a/disk.img", None, checksum)
    packed = manifest(packing=packing)
    added = add(catalogue, of=packed, format=ImageFormat.RAW, virtual_size=None)
    assert (added.size, added.packed_size, added.size_is_known) == (10 * MiB, 10 * MiB, False)
    assert not added.is_readable_early
    assert added.content_id.startswith("unpacked:")
    assert catalogue.manifest(added.content_id) == packed
    catalogue.record_unpacked(added.content_id, 70 * MiB, "ab" * 32)
    [now] = catalogue.templates()
    assert (now.size, now.packed_size, now.size_is_known) == (70 * MiB, 10 * MiB, True)
    assert now.virtual_size == 70 * MiB
    proved = catalogue.manifest(added.content_id)
    assert proved.packing == replace(packing, size=70 * MiB, sha256="ab" * 32)
    assert proved.content_id == added.content_id
    assert [d.hexdigest for d in proved.published.digests] == ["ab" * 32, checksum.hexdigest]
    catalogue.record_unpacked("sha-256:" + "0" * 64, 1, "ab" * 32)


def test_the_same_bytes_packed_and_not_are_two_contents(catalogue):
    plain, packed = manifest(), manifest(packing=Packing(PackingKind.XZ))
    assert add(catalogue, "a", plain).content_id == plain.content_id
    assert add(catalogue, "b", packed).content_id == packed.content_id
    assert len({template.published_name for template in catalogue.templates()}) == 2


def test_an_unverified_content_is_pinned_once_and_for_ever(catalogue):
    name = unverified_id("http://a.example/x", 5, '"1"')
    described = replace(manifest(), digests=(), pieces=None, unverified_id=name)
    add(catalogue, "a", described)
    assert catalogue.manifest(name).digests == ()
    one = Digest(HashAlgorithm.SHA256, "1" * 64)
    catalogue.pin(name, one)
    catalogue.pin(name, one)
    assert catalogue.manifest(name).digests == (one,)
    assert catalogue.manifest(name).content_id == name
    with pytest.raises(errors.ChecksumError, match="bound to sha-256:1"):
        catalogue.pin(name, Digest(HashAlgorithm.SHA256, "2" * 64))
    # Another name of it does not undo that.
    add(catalogue, "b", described)
    assert catalogue.manifest(name).digests == (one,)
    catalogue.pin("unverified:gone", one)


def test_catalogue_who_named_a_mirror_is_kept_and_the_nearest_counts(catalogue):
    def named(**by: str | None) -> Manifest:
        mirrors = tuple(Mirror(f"https://{host}/x", named_from=who) for host, who in by.items())
        return replace(manifest(), mirrors=mirrors)

    def known() -> dict[str, str | None]:
        found = catalogue.manifest(manifest().content_id).mirrors
        return {mirror.url[8]: mirror.named_from for mirror in found}

    add(catalogue, "one", named(a=None, b="", c="10.0.0.0/8"))
    assert known() == {"a": None, "b": "", "c": "10.0.0.0/8"}
    catalogue.merge_mirrors(manifest().content_id, named(a="", b="10.0.0.0/8", c="127.0.0.0/8"))
    assert known() == {"a": None, "b": "10.0.0.0/8", "c": "10.0.0.0/8"}
    catalogue.merge_mirrors(manifest().content_id, named(b="", c=None))
    assert known() == {"a": None, "b": "10.0.0.0/8", "c": None}


def test_catalogue_a_signature_is_asked_for_by_one_name(catalogue):
    plain = add(catalogue, "plain")
    signed = add(catalogue, "signed", of=manifest(signature="SIG"))
    assert (plain.signature, plain.is_readable_early, plain.head_is_verified) == (None, True, True)
    assert signed.content_id == plain.content_id
    assert (signed.signature, signed.is_readable_early) == ("SIG", False)
    assert not signed.head_is_verified
    assert catalogue.manifest(plain.content_id).signature is None
    found = catalogue.declare("signed", Declaration("https://x/y"), None)
    assert (found.signature, found.is_readable_early) == (None, True)


def test_catalogue_says_which_hash_is_weak(catalogue):
    md5 = Digest(HashAlgorithm.MD5, "0" * 32)
    of = replace(manifest(), digests=(md5,))
    assert (add(catalogue, "md5", of=of).weak, add(catalogue).weak) == ("md5", None)
    pieces = PieceMap(HashAlgorithm.SHA1, MiB, bytes(200))
    of = replace(manifest(), digests=(), pieces=pieces)
    assert add(catalogue, "pieces", of=of).weak == "sha-1 piece hashes"
