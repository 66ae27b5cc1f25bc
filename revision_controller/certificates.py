"""Certificates of the webhook: a CA of our own and a leaf for the Service's name, made anew at two thirds of their life.

When to make them is a pure decision of `now`; making them uses the `cryptography` package. A CA signs one leaf and its key is forgotten, so
that nothing that is stored can sign another. During a rotation callers trust the new CA and the one before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LIFE = timedelta(days=90)
EARLY = timedelta(hours=1)
"""A certificate counts from a little in the past: clocks differ."""


@dataclass(frozen=True, slots=True)
class Certificates:
    """PEM: the CAs that callers trust (the leaf's own first), the server's certificate and its key."""

    ca: bytes
    certificate: bytes
    key: bytes


def due(held: Certificates | None, names: Sequence[str], now: datetime) -> bool:
    """True when certificates are missing, broken, do not belong together or to the names, or have lived two thirds of their life."""
    if held is None:
        return True
    try:
        authority = x509.load_pem_x509_certificates(held.ca)[0]
        leaf = x509.load_pem_x509_certificate(held.certificate)
        key = serialization.load_pem_private_key(held.key, None)
        alternative = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        leaf.verify_directly_issued_by(authority)
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature, x509.ExtensionNotFound):
        return True
    if key.public_key() != leaf.public_key() or set(alternative.get_values_for_type(x509.DNSName)) != set(names):
        return True
    begin, end = leaf.not_valid_before_utc, min(leaf.not_valid_after_utc, authority.not_valid_after_utc)
    return not begin <= now < begin + (end - begin) * 2 / 3


def trusted(new: Certificates, held: Certificates | None, now: datetime) -> bytes:
    """Whom callers trust while `new` follows `held`: the new CA, and the old one as long as it is valid."""
    try:
        old = x509.load_pem_x509_certificates(held.ca)[:1] if held is not None else []
    except ValueError:
        old = []
    valid = [ca for ca in old if ca.not_valid_before_utc <= now < ca.not_valid_after_utc]
    return new.ca + b"".join(ca.public_bytes(serialization.Encoding.PEM) for ca in valid)


def make(names: Sequence[str], now: datetime) -> Certificates:
    """New ones, valid from `now` for LIFE."""
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = _name("cloudstate-knative webhook CA")
    ca = (
        _builder(authority, authority, authority_key.public_key(), now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key()), critical=False)
        .add_extension(_usage(signing=True), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    leaf = (
        _builder(_name(names[0][:64]), authority, key.public_key(), now)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .add_extension(_usage(signing=False), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return Certificates(ca.public_bytes(pem), leaf.public_bytes(pem), secret)


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - EARLY)
        .not_valid_after(now + LIFE)
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _usage(signing: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signing,
        key_cert_sign=signing,
        crl_sign=signing,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
