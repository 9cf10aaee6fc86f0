"""Images on mirrors, with a metalink that names them."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab import bootimage
from lab.metalink import MIB, sha256_of, write_metalink
from lab.mirrors import Mirror


@dataclass(frozen=True)
class Published:
    """An image that mirrors serve; ``source`` is its metalink's address."""

    image: Path
    source: str
    sha256: str
    line: str
    mirrors: tuple[Mirror, ...]

    @property
    def size(self) -> int:
        return self.image.stat().st_size

    def requests(self) -> int:
        """For the image, so far."""
        return sum(len(mirror.requests(self.image.name)) for mirror in self.mirrors)

    def bytes_sent(self) -> int:
        """Of the image, so far."""
        return sum(mirror.bytes_sent(self.image.name) for mirror in self.mirrors)


class Site:
    """Some mirrors, each with a folder of its own, and a further one for the metalinks."""

    def __init__(self, directory: Path, sites: Sequence[Mirror], documents: Mirror) -> None:
        self.directory = directory
        self.mirrors = tuple(sites)
        self.documents = documents

    def publish(
        self,
        name: str,
        *,
        size: int = 16 * MIB,
        piece_length: int | None = MIB,
        seed: int = 1,
        liars: Sequence[Mirror] = (),
    ) -> Published:
        """A bootable qcow2 called ``NAME.qcow2``; the *liars* serve other bytes than the rest."""
        line = f"This is {name}."
        image = bootimage.write_qcow2(self._folder() / f"{name}.qcow2", line, size, seed=seed)
        return self.publish_file(image, line, piece_length=piece_length, liars=liars)

    def publish_raw(self, name: str, *, size: int = 16 * MIB, seed: int = 1) -> Published:
        """The same as a raw disk called ``NAME.img``, which may as well be a cdrom's medium."""
        line = f"This is {name}."
        image = bootimage.write_raw(self._folder() / f"{name}.img", line, size, seed=seed)
        return self.publish_file(image, line)

    def publish_file(
        self,
        image: Path,
        line: str = "",
        *,
        piece_length: int | None = MIB,
        liars: Sequence[Mirror] = (),
    ) -> Published:
        """Any file of the scratch directory; *line* is what it prints when it is booted."""
        document = self.documents.root / f"{image.stem}.meta4"
        urls = [mirror.url(image.name) for mirror in self.mirrors]
        write_metalink(document, image, urls, piece_length=piece_length)
        for mirror in self.mirrors:
            copy = mirror.root / image.name
            if mirror in liars:
                _write_lie(copy, image, mirror.address)
            else:
                copy.hardlink_to(image)
        source = self.documents.url(document.name)
        return Published(image, source, sha256_of(image), line, self.mirrors)

    def _folder(self) -> Path:
        folder = self.directory / "images"
        folder.mkdir(exist_ok=True)
        return folder


def _write_lie(copy: Path, image: Path, liar: str) -> None:
    """Other bytes than anybody's, but in the first MiB: registering sees nothing wrong."""
    shutil.copyfile(image, copy)
    with copy.open("r+b") as file:
        for offset in range(MIB, image.stat().st_size, MIB // 4):
            file.seek(offset)
            file.write(f"These bytes are {liar}'s own.".encode())


@contextlib.contextmanager
def site(directory: Path, rates: Sequence[int | None]) -> Iterator[Site]:
    """A mirror for each of *rates* (bytes a second, None: as fast as it can)."""
    with contextlib.ExitStack() as stack:

        def start(number: int, rate: int | None) -> Mirror:
            root = directory / f"www{number}"
            root.mkdir(parents=True)
            work, address = directory / f"nginx{number}", f"127.0.0.{number}"
            return stack.enter_context(Mirror(work, root, address=address, rate=rate))

        sites = [start(number, rate) for number, rate in enumerate(rates, start=2)]
        yield Site(directory, sites, start(1, None))
