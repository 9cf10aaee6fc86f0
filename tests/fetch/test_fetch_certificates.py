"""Authorities that a host trusts: adding, listing, removing."""

from __future__ import annotations

import datetime
import time

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ddfs import errors
from ddfs.fetch import certificates


def authority(name: str, days: float, *, is_ca: bool = True) -> bytes:
    """A self-signed certificate that expires in *days*."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=100))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return built.public_bytes(serialization.Encoding.PEM)


def test_added_listed_and_removed(tmp_path):
    store, source = tmp_path / "state" / "ca", tmp_path / "office.pem"
    source.write_bytes(b"Firma B\xfcro\n" + authority("office", 30.5) + authority("branch", 3.5))
    now = time.time()
    added = certificates.add(store, source, None, now)
    assert added.name == "office"
    assert {(c.subject, c.days_left(now)) for c in added.certificates} == {
        ("office", 30),
        ("branch", 3),
    }
    assert certificates.added(store) == [added]
    certificates.add(store, source, None, now)
    certificates.add(store, source, "other", now)
    assert [file.name for file in certificates.added(store)] == ["office", "other"]
    certificates.remove(store, "office")
    assert [file.name for file in certificates.added(store)] == ["other"]
    with pytest.raises(errors.InvalidValueError, match="ca list"):
        certificates.remove(store, "office")


def test_what_cannot_be_trusted_is_one_line(tmp_path):
    store = tmp_path / "ca"
    whole = authority("a", 5)
    for content, said in (
        (authority("old", -3), "of old expired on "),
        (authority("a", 5, is_ca=False), "not one of a certificate authority"),
        (whole[: len(whole) // 2] + b"\n-----END CERTIFICATE-----\n", "malformed"),
        (b"", "no PEM certificate"),
        (b"\0" * 100, "no PEM certificate"),
        (b"x" * (certificates.MAX_BUNDLE_BYTES + 1), "larger than"),
        (trustme.CA().private_key_pem.bytes(), "no PEM certificate"),
    ):
        source = tmp_path / "x.pem"
        source.write_bytes(content)
        with pytest.raises(errors.InvalidValueError, match=said) as caught:
            certificates.add(store, source, None, time.time())
        assert str(source) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert certificates.added(store) == []
    with pytest.raises(errors.InvalidValueError, match="No such file"):
        certificates.add(store, tmp_path / "none.pem", None, time.time())


def test_names(tmp_path):
    source = tmp_path / "x.pem"
    source.write_bytes(authority("a", 5))
    for name in ("../x", "", "a/b", ".hidden", "x" * 101):
        with pytest.raises(errors.InvalidValueError, match="cannot be a name"):
            certificates.add(tmp_path / "ca", source, name, time.time())
    certificates.add(tmp_path / "ca", source, "a", time.time())
    source.write_bytes(authority("b", 5))
    with pytest.raises(errors.InvalidValueError, match="there already"):
        certificates.add(tmp_path / "ca", source, "a", time.time())
    for name in ("../x", "a.pem"):
        with pytest.raises(errors.InvalidValueError, match="no certificate"):
            certificates.remove(tmp_path / "ca", name)


def test_one_that_has_expired_or_broken_since_is_listed_as_such(tmp_path):
    store = tmp_path / "ca"
    store.mkdir()
    (store / "old.pem").write_bytes(authority("old", -2.5))
    (store / "broken.pem").write_bytes(b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----")
    broken, old = certificates.added(store)
    assert old.certificates[0].days_left(time.time()) < 0
    assert "malformed" in (broken.problem or "")
