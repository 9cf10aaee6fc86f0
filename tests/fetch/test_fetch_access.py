"""Credentials go where they belong, and nowhere else; addresses by whose word they may be."""

from __future__ import annotations

import os
import ssl
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trustme
from fetch_target import fetch, manifest_of, random_bytes

from ddfs import errors
from ddfs.declaration import Declaration
from ddfs.fetch.access import exposed, grants_of
from ddfs.fetch.address import Address
from ddfs.fetch.transport import Transport
from ddfs.metalink.read import parse, select
from ddfs.metalink.write import make
from ddfs.model import ByteRange, Manifest, MiB
from tests.mirrorlab.mirrorlab import KiB, MirrorLab

CONTENT = random_bytes(3 * MiB + 5)
TOKEN = "Authorization: Bearer geheim"


def declared(source: str, **plain: object) -> Declaration:
    return Declaration.from_plain({"source": source, **plain})


def named_from(manifest: Manifest, network: str | None) -> Manifest:
    return replace(
        manifest, mirrors=tuple(replace(m, named_from=network) for m in manifest.mirrors)
    )


def secret(path: Path, text: str, mode: int = 0o600) -> str:
    path.write_text(text)
    path.chmod(mode)
    return str(path)


async def failure_of(manifest: Manifest, path: Path, **options: object) -> str:
    with pytest.raises(errors.MirrorsExhaustedError) as caught:
        await fetch(manifest, path, limit=20, **options)
    return str(caught.value)


# -- credentials ---------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [None, "redirect"])
async def test_credentials_open_their_origin_to_documents_ranges_and_the_bulk(fault, tmp_path):
    async with MirrorLab() as lab, Transport() as transport:
        url = lab.mirror(CONTENT, wants=TOKEN, fault=fault)
        declaration = declared(url, headers=[TOKEN, "X-Other: y"])
        inquiry = await transport.inquiry(declaration)
        assert await inquiry.size_of(url) == len(CONTENT)
        assert await inquiry.read_range(url, ByteRange(5, 9), size=None) == CONTENT[5:9]
        assert (await inquiry.read_document(url, max_bytes=4 * MiB)).data == CONTENT
        done = await fetch(manifest_of(CONTENT, [url]), tmp_path / "p", grants=inquiry.grants)
        assert done.content == CONTENT
        assert all(b"X-Other: y" in head for head in lab[url].heads)
        assert "401" in await failure_of(manifest_of(CONTENT, [url]), tmp_path / "q")


async def test_no_mirror_and_no_redirect_elsewhere_gets_credentials(tmp_path):
    async with MirrorLab() as lab, Transport() as transport:
        other = lab.mirror(CONTENT)
        redirecting = lab.mirror(CONTENT, to=other)
        inquiry = await transport.inquiry(declared(redirecting, headers=[TOKEN]))
        assert await inquiry.size_of(redirecting) == len(CONTENT)
        await inquiry.read_range(redirecting, ByteRange(0, 9), size=None)
        await inquiry.read_document(redirecting, max_bytes=4 * MiB)
        manifest = manifest_of(CONTENT, [redirecting, other])
        await fetch(manifest, tmp_path / "p", grants=inquiry.grants)
        assert all(b"geheim" in head for head in lab[redirecting].heads)
        assert lab[other].heads
        assert not any(b"uthorization" in head for head in lab[other].heads)


async def test_a_login_in_the_source_is_sent_and_not_shown():
    async with MirrorLab() as lab, Transport() as transport:
        url = lab.mirror(CONTENT, wants="Authorization: Basic dTpnZWhlaW0=")
        declaration = declared(url.replace("http://", "http://u:geheim@"))
        assert declaration.source == url
        inquiry = await transport.inquiry(declaration)
        assert await inquiry.size_of(url) == len(CONTENT)
        lab[url].wants = "X: y"
        with pytest.raises(errors.MirrorError) as caught:
            await inquiry.size_of(url)
        assert "401" in str(caught.value)
        assert "geheim" not in str(caught.value)


async def test_names_of_one_content_each_open_their_own_origin(tmp_path):
    async with MirrorLab() as lab, Transport() as transport:
        first = lab.mirror(CONTENT, wants="X-Key: one", rate=4 * MiB)
        second = lab.mirror(CONTENT, wants="X-Key: two", rate=4 * MiB)
        grants = await transport.grants(
            [declared(first, headers=["X-Key: one"]), declared(second, headers=["X-Key: two"])]
        )
        done = await fetch(manifest_of(CONTENT, [first, second]), tmp_path / "p", grants=grants)
        assert all(m.bytes_received for m in done.report.statistics.mirrors)


def headers_to(url: str, declaration: Declaration) -> dict[str, str]:
    found = grants_of([declaration]).to(Address.parse(url)).headers
    return {name: value.decode() for name, value in found}


def test_files_with_secrets(tmp_path):
    headers = secret(tmp_path / "h", "# for the mirror\n\nX-Key: a b \r\nX-Kéy\n"[:-7])
    token = secret(tmp_path / "t", "abc.def\n")
    url = "https://a.example/x"
    assert headers_to(url, declared(url, headers_file=headers)) == {"X-Key": "a b"}
    assert headers_to(url, declared(url, token_file=token)) == {"Authorization": "Bearer abc.def"}
    typed = declared(url, token_file=token, headers_file=headers, headers=["authorization: Own"])
    assert headers_to(url, typed) == {"authorization": "Own", "X-Key": "a b"}
    assert headers_to("https://a.example:444/x", typed) == {}
    assert headers_to("http://a.example/x", typed) == {}
    (tmp_path / "t").write_text("fresh")
    assert headers_to(url, declared(url, token_file=token)) == {"Authorization": "Bearer fresh"}


@pytest.mark.parametrize(
    ("entries", "pair"),
    [
        ("machine a.example login u password p", "dTpw"),
        ("machine b.example login x password y\nmachine A.example\n login u\n password p", "dTpw"),
        ('machine a.example login "u" password "p q\\"r"', "dTpwIHEicg=="),
        ("macdef init\ncd /\nmachine a.example login no password no\n\n"
         "machine a.example login u password p", "dTpw"),
        ("default login u password p", "dTpw"),
        ("# c\nmachine a.example login u password p#3", "dTpwIzM="),
        ("machine a.example login u", "dTo="),
    ],
)  # fmt: skip
def test_netrc(entries, pair, tmp_path):
    path = secret(tmp_path / "netrc", entries + "\n")
    url = "https://a.example/x"
    assert headers_to(url, declared(url, netrc_file=path)) == {"Authorization": f"Basic {pair}"}


def test_netrc_names_its_machines_and_default_is_for_the_source_alone(tmp_path):
    path = secret(tmp_path / "netrc", "machine b.example login b password b\ndefault login d\n")
    found = declared("https://a.example/x", checksum_url="https://b.example/SUMS", netrc_file=path)
    assert headers_to("https://a.example/", found) == {"Authorization": "Basic ZDo="}
    assert headers_to("https://b.example/", found) == {"Authorization": "Basic Yjpi"}
    found = declared("https://b.example/x", checksum_url="https://c.example/S", netrc_file=path)
    assert headers_to("https://c.example/", found) == {}


@pytest.mark.parametrize(
    ("key", "content", "said"),
    [
        ("headers_file", "X: y\nRange: geheim\n", "line 2: Range is set by ddfs"),
        ("headers_file", "geheim\n", "line 1: not one line"),
        ("headers_file", "X: ge\x00heim\n", "line 1: not one line"),
        ("headers_file", "X: y\n" * 33, "more than 32"),
        ("headers_file", b"X: \xff\xfe", "UTF-8"),
        ("token_file", "two geheim\n", "not one token"),
        ("token_file", "", "not one token"),
        ("token_file", "geheim\r\nX: y", "not one token"),
        ("netrc_file", "machine\n\n", "line"),
        ("netrc_file", "machine a login geheim geheim\n", "line 2: not in netrc's form"),
        ("netrc_file", "geheim" * 60_000, "larger than"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line_without_the_secret(key, content, said, tmp_path):
    path = tmp_path / "f"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(errors.InvalidValueError) as caught:
        grants_of([declared("https://a.example/x", **{key: str(path)})])
    assert str(caught.value).startswith(f"{key}: {path}")
    assert said in str(caught.value)
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize("key", ["headers_file", "netrc_file", "token_file"])
def test_a_file_that_is_missing_or_no_file(key, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for name, said in (("no", "No such file"), ("fifo", "not a regular"), (".", "directory|reg")):
        with pytest.raises(errors.InvalidValueError, match=said):
            grants_of([declared("https://a.example/x", **{key: str(tmp_path / name)})])


def test_credentials_for_what_has_no_origin_are_refused(tmp_path):
    token = secret(tmp_path / "t", "abc")
    for given in ({"headers": ["X: y"]}, {"token_file": token}, {"client_cert": token}):
        with pytest.raises(errors.InvalidValueError):
            grants_of([declared("/srv/x.meta4", **given)])


def test_what_is_missing_is_what_is_said(tmp_path):
    pem = secret(tmp_path / "k", "abc")
    for source, given, said in (
        ("https://a.example/x", {"client_key": pem}, "client_key: .* without client_cert"),
        ("nfs://a.example/e/x", {"headers": ["X: y"]}, "an http or https address"),
    ):
        with pytest.raises(errors.InvalidValueError, match=said):
            grants_of([declared(source, **given)])


def test_one_name_that_cannot_be_asked_does_not_end_the_others(tmp_path):
    good, bad = "https://a.example/x", "https://b.example/x"
    names = [declared(good, headers=["X: y"]), declared(bad, token_file=str(tmp_path / "gone"))]
    assert grants_of(names).to(Address.parse(good)).headers == (("X", b"y"),)


def test_a_file_that_everybody_can_read_is_a_warning(tmp_path, caplog):
    path = secret(tmp_path / "t", "abc", 0o644)
    assert "everybody" in (exposed(path) or "")
    grants_of([declared("https://a.example/x", token_file=path)])
    assert "everybody" in caplog.text
    (tmp_path / "t").chmod(0o640)
    assert exposed(path) is None
    assert exposed("/dev/null") is None


# -- TLS -----------------------------------------------------------------------------------


class Authority:
    """A CA, and what it has signed; nobody trusts it."""

    def __init__(self, directory: Path) -> None:
        self.ca = trustme.CA()
        self.directory = directory
        self.file = str(directory / "ca.pem")
        self.ca.cert_pem.write_to_path(self.file)

    def server(self, host: str = "127.0.0.1", *, asks: bool = False) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        addresses = [host, *(f"127.0.0.{number}" for number in range(2, 9))]
        self.ca.issue_cert(*addresses).configure_cert(context)
        if asks:
            self.ca.configure_trust(context)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def client(self) -> tuple[str, str]:
        issued = self.ca.issue_cert("host.example")
        cert, key = self.directory / "client.pem", self.directory / "client.key"
        issued.cert_chain_pems[0].write_to_path(str(cert))
        issued.private_key_pem.write_to_path(str(key))
        return str(cert), str(key)


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


async def test_a_ca_file_is_trusted_for_its_template_alone(authority, tmp_path):
    async with MirrorLab() as lab, Transport() as transport:
        url = lab.mirror(CONTENT, tls=authority.server())
        inquiry = await transport.inquiry(declared(url, ca_file=authority.file))
        assert await inquiry.size_of(url) == len(CONTENT)
        manifest = manifest_of(CONTENT, [url])
        await fetch(manifest, tmp_path / "p", transport=transport, grants=inquiry.grants)
        with pytest.raises(errors.MirrorError, match=r"not trusted .*; if it should be, .*ca add"):
            await transport.size_of(url)
        # Nor is a connection of the one used by the other.
        refused = await failure_of(manifest, tmp_path / "q", transport=transport)
        assert "its certificate is not trusted (unable to get local issuer" in refused
        assert "--ca-file" in refused


async def test_a_client_certificate_is_shown_to_its_origin_alone(authority, tmp_path):
    certificate, key = authority.client()
    async with MirrorLab() as lab, Transport() as transport:
        url = lab.mirror(CONTENT, tls=authority.server(asks=True))
        other = lab.mirror(CONTENT, tls=authority.server(asks=True))
        declaration = declared(url, ca_file=authority.file, client_cert=certificate, client_key=key)
        inquiry = await transport.inquiry(declaration)
        assert await inquiry.size_of(url) == len(CONTENT)
        done = await fetch(manifest_of(CONTENT, [url]), tmp_path / "p", grants=inquiry.grants)
        assert done.content == CONTENT
        with pytest.raises(errors.MirrorError):
            await inquiry.size_of(other)
        await failure_of(manifest_of(CONTENT, [other]), tmp_path / "q", grants=inquiry.grants)
        assert lab[other].requests == 0


async def test_certificates_that_cannot_be_used(authority, tmp_path):
    certificate, key = authority.client()
    other = trustme.CA().issue_cert("x.example")
    other.private_key_pem.write_to_path(str(tmp_path / "other.key"))
    (tmp_path / "bad.pem").write_text("-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----")
    url = "https://a.example/x"
    async with Transport() as transport:
        for given, said in (
            ({"ca_file": str(tmp_path / "bad.pem")}, "ca_file: .*bad.pem: .* malformed"),
            ({"ca_file": key}, "ca_file: .*: no PEM certificate"),
            ({"ca_file": certificate}, "ca_file: .*: .*not one of a certificate authority"),
            ({"ca_file": "/no/such"}, "ca_file: /no/such: cannot be read"),
            ({"client_cert": certificate}, "client_cert: .*: no usable"),
            ({"client_cert": certificate, "client_key": str(tmp_path / "other.key")},
             "does not belong"),
            ({"client_cert": "/no/such"}, "cannot be read"),
            ({"client_key": key}, "client_key: "),
        ):  # fmt: skip
            with pytest.raises(errors.InvalidValueError, match=said) as caught:
                await transport.inquiry(declared(url, **given))
            assert "\n" not in str(caught.value)


async def test_an_encrypted_key_is_an_error_and_not_a_question(authority, tmp_path):
    from cryptography.hazmat.primitives import serialization

    certificate, key = authority.client()
    loaded = serialization.load_pem_private_key(Path(key).read_bytes(), None)
    Path(key).write_bytes(
        loaded.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"x"),
        )
    )
    async with Transport() as transport:
        with pytest.raises(errors.InvalidValueError, match="it is encrypted"):
            await transport.inquiry(
                declared("https://a.example/x", client_cert=certificate, client_key=key)
            )


async def test_tls_is_left_only_where_a_strong_hash_came_over_a_trusted_way(authority, tmp_path):
    sha256, md5 = f"sha256:{'0' * 64}", f"md5:{'0' * 32}"
    async with MirrorLab() as lab, Transport() as transport:
        plain = lab.mirror(CONTENT)
        url = lab.mirror(CONTENT, tls=authority.server(), to=plain)
        manifest = manifest_of(CONTENT, [url])
        for given, is_followed in (
            ({"source": url, "checksum": sha256}, True),
            ({"source": "https://a.example/x.meta4"}, True),
            ({"source": "/srv/x.meta4"}, True),
            ({"source": url, "checksum_url": "https://a.example/SUMS"}, True),
            ({"source": "http://a.example/x.meta4"}, False),
            ({"source": url, "checksum_url": "http://a.example/SUMS"}, False),
            ({"source": url, "unverified": True}, False),
            ({"source": "http://a.example/x.meta4", "checksum": md5}, False),
        ):
            path = tmp_path / str(len(list(tmp_path.iterdir())))
            grants = await transport.grants(
                [Declaration.from_plain(given | {"ca_file": authority.file})]
            )
            if is_followed:
                assert (await fetch(manifest, path, grants=grants)).content == CONTENT
            else:
                assert "from https" in await failure_of(manifest, path, grants=grants)
        inquiry = await transport.inquiry(declared(url, checksum=sha256, ca_file=authority.file))
        await inquiry.read_range(url, ByteRange(0, 9), size=None)
        with pytest.raises(errors.MirrorError, match="from https"):
            await inquiry.read_document(url, max_bytes=4 * MiB)


# -- who may name which address ------------------------------------------------------------


async def test_a_mirror_that_a_public_document_names_is_not_on_this_host(tmp_path):
    async with MirrorLab() as lab:
        url = lab.mirror(CONTENT)
        manifest = manifest_of(CONTENT, [url])
        said = await failure_of(named_from(manifest, ""), tmp_path / "a")
        assert "loopback" in said
        assert 'allow_networks = ["127.0.0.0/8"]' in said
        await failure_of(named_from(manifest, "10.0.0.0/8"), tmp_path / "b")
        assert lab[url].connections == 0
        await fetch(named_from(manifest, "127.0.0.0/8"), tmp_path / "c")
        await fetch(named_from(manifest, None), tmp_path / "d")
        allowing = Transport(allow_networks=["127.0.0.0/8"])
        await fetch(named_from(manifest, ""), tmp_path / "e", transport=allowing)


@pytest.mark.parametrize(
    "host", ["localhost", "127.1", "2130706433", "0x7f.0.0.1", "0177.0.0.1", "[::ffff:127.0.0.1]",
             "[::1]", "0.0.0.0", "169.254.169.254", "[fe80::1]", "[64:ff9b::7f00:1]"],
)  # fmt: skip
async def test_no_way_of_writing_an_address_gets_around_that(host, tmp_path):
    said = await failure_of(
        named_from(manifest_of(CONTENT, [f"http://{host}:9/x"]), ""), tmp_path / "a"
    )
    assert "was named from elsewhere" in said


async def test_a_document_may_name_the_network_that_it_came_from():
    async with MirrorLab() as lab, Transport() as transport:
        mirror = lab.mirror(CONTENT)
        text = make(manifest_of(CONTENT, [mirror, "http://10.1.2.3/x", "http://a.example/x"]))
        document = lab.mirror(text.encode(), name="x.meta4")
        inquiry = await transport.inquiry(declared(document))
        found = await inquiry.read_document(document, max_bytes=MiB)
        manifest = select(parse(found.data, base_url=found.url, location=None), None)
        manifest = inquiry.attributed(manifest)
        assert {m.named_from for m in manifest.mirrors} == {"127.0.0.0/8"}
        assert await inquiry.size_of(mirror) == len(CONTENT)
        with pytest.raises(errors.MirrorError, match="private"), trio.fail_after(90):
            await inquiry.size_of("http://10.1.2.3/x")


async def test_a_redirect_names_by_the_word_of_who_redirects(tmp_path):
    async with MirrorLab() as lab, Transport() as transport:
        inside = lab.mirror(CONTENT)
        good = lab.mirror(CONTENT, to=inside)
        bad = lab.mirror(CONTENT, to="http://169.254.169.254/latest/meta-data")
        for url in (good, bad):
            inquiry = await transport.inquiry(declared(url))
            if url == good:
                assert await inquiry.size_of(url) == len(CONTENT)
                await fetch(manifest_of(CONTENT, [url]), tmp_path / "p")
            else:
                with pytest.raises(errors.MirrorError, match="link-local"), trio.fail_after(90):
                    await inquiry.size_of(url)
                said = await failure_of(manifest_of(CONTENT, [url]), tmp_path / "q")
                assert "link-local" in said


class Names(trio.abc.HostnameResolver):
    """A name server whose answers change."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def getaddrinfo(self, host, port, family=0, type=0, proto=0, flags=0):  # noqa: A002
        await trio.lowlevel.checkpoint()
        self.asked += 1
        found = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [(2, 1, 6, "", (address, port)) for address in found]

    async def getnameinfo(self, sockaddr, flags):
        raise NotImplementedError


async def test_the_address_that_is_connected_to_is_what_counts(tmp_path):
    async with MirrorLab() as lab, Transport() as transport:
        url = lab.mirror(CONTENT)
        port = Address.parse(url).port
        host = Address.parse(url).host
        named = f"http://mirror.example:{port}/image.img"
        manifest = named_from(manifest_of(CONTENT, [named]), "127.0.0.0/8")
        # What is refused is passed over, and the rest is used.
        trio.socket.set_custom_hostname_resolver(Names(["10.0.0.1", "169.254.169.254", host]))
        await fetch(manifest, tmp_path / "a")
        # The first request may go there; when the name has moved, no more.
        names = Names([host], ["10.0.0.1"])
        trio.socket.set_custom_hostname_resolver(names)
        lab[url].fault = "close_each"
        source = f"http://mirror.example:{port}/doc"
        inquiry = await transport.inquiry(declared(source))
        with pytest.raises(errors.MirrorError, match="404"):
            await inquiry.read_document(source, max_bytes=KiB)
        with pytest.raises(errors.MirrorError, match="private"), trio.fail_after(90):
            await inquiry.size_of(named)
        assert names.asked == 2


async def test_of_several_addresses_the_one_that_answers_is_used(tmp_path):
    async with MirrorLab() as lab:
        url = lab.mirror(CONTENT)
        dead = Address.parse(lab.mirror(CONTENT, fault="refuse")).host
        address = Address.parse(url)
        trio.socket.set_custom_hostname_resolver(Names([dead, address.host]))
        named = f"http://mirror.example:{address.port}/image.img"
        await fetch(named_from(manifest_of(CONTENT, [named]), "127.0.0.0/8"), tmp_path / "a")
        async with Transport() as transport:
            inquiry = await transport.inquiry(declared(url))
            await inquiry.read_document(url, max_bytes=4 * MiB)
            assert await inquiry.size_of(named) == len(CONTENT)
