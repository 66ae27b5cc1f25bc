"""Certificates: what is made is trusted by clients, and when new ones are due."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from revision_controller.certificates import EARLY, LIFE, Certificates, due, make, trusted

NAMES = ("cloudstate-webhook.cloudstate-system.svc", "cloudstate-webhook.cloudstate-system.svc.cluster.local")
NOW = datetime(2030, 1, 1, tzinfo=UTC)
MADE = make(NAMES, NOW)
OTHER = make(NAMES, NOW)
TWO_THIRDS = (LIFE + EARLY) * 2 / 3 - EARLY


def shaken(server: Certificates, trust: bytes, name: str, tmp_path: object) -> None:
    """A TLS handshake in memory. ssl.SSLError when the client does not trust the server."""
    chain, key = f"{tmp_path}/tls.crt", f"{tmp_path}/tls.key"
    with open(chain, "wb") as file:
        file.write(server.certificate)
    with open(key, "wb") as file:
        file.write(server.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context(cadata=trust.decode()).wrap_bio(to_client, to_server, server_hostname=name)
    answering = context.wrap_bio(to_server, to_client, server_side=True)
    pending = [client, answering]
    for _ in range(10):
        for side in list(pending):
            try:
                side.do_handshake()
                pending.remove(side)
            except ssl.SSLWantReadError:
                continue
        if not pending:
            return
    raise AssertionError("the handshake does not end")


@pytest.mark.parametrize("name", NAMES)
def test_a_client_that_trusts_the_ca_takes_the_servers_certificate(name: str, tmp_path: object) -> None:
    fresh = make(NAMES, datetime.now(UTC))
    shaken(fresh, fresh.ca, name, tmp_path)


def test_a_client_takes_neither_another_name_nor_another_ca(tmp_path: object) -> None:
    fresh, stranger = make(NAMES, datetime.now(UTC)), make(NAMES, datetime.now(UTC))
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shaken(fresh, fresh.ca, "elsewhere.svc", tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError):
        shaken(fresh, stranger.ca, NAMES[0], tmp_path)


def test_while_one_follows_the_other_both_are_trusted(tmp_path: object) -> None:
    now = datetime.now(UTC)
    old, new = make(NAMES, now), make(NAMES, now)
    bundle = trusted(new, old, now)
    for server in (old, new):
        shaken(server, bundle, NAMES[0], tmp_path)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (NOW, False),
        (NOW + TWO_THIRDS - timedelta(seconds=1), False),
        (NOW + TWO_THIRDS, True),
        (NOW + LIFE, True),
        (NOW - EARLY, False),
        (NOW - EARLY - timedelta(seconds=1), True),
    ],
)
def test_they_are_due_at_two_thirds_of_their_life_and_before_it(now: datetime, expected: bool) -> None:
    assert due(MADE, NAMES, now) is expected


@pytest.mark.parametrize(
    "held",
    [
        None,
        Certificates(b"", MADE.certificate, MADE.key),
        Certificates(MADE.ca, b"rubbish", MADE.key),
        Certificates(MADE.ca, MADE.certificate, b"rubbish"),
        Certificates(MADE.ca, MADE.certificate, OTHER.key),
        Certificates(OTHER.ca, MADE.certificate, MADE.key),
        Certificates(OTHER.ca + MADE.ca, MADE.certificate, MADE.key),
    ],
    ids=["none", "no CA", "no certificate", "no key", "another key", "another CA", "the CA is not the first"],
)
def test_what_is_broken_or_does_not_belong_together_is_due(held: Certificates | None) -> None:
    assert due(held, NAMES, NOW)


def test_a_bundle_whose_first_ca_is_the_leafs_own_is_not_due() -> None:
    assert not due(Certificates(MADE.ca + OTHER.ca, MADE.certificate, MADE.key), NAMES, NOW)


def test_other_names_make_them_due() -> None:
    assert due(MADE, NAMES[:1], NOW)
    assert due(MADE, (*NAMES, "third"), NOW)


def cas(bundle: bytes) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(bundle)


def test_only_the_last_ca_that_is_still_valid_is_kept_beside_the_new_one() -> None:
    new = make(NAMES, NOW)
    older = Certificates(MADE.ca + OTHER.ca, MADE.certificate, MADE.key)
    assert cas(trusted(new, older, NOW)) == cas(new.ca) + cas(MADE.ca)
    assert cas(trusted(new, MADE, NOW + LIFE)) == cas(new.ca)
    assert cas(trusted(new, None, NOW)) == cas(new.ca)
    assert cas(trusted(new, Certificates(b"rubbish", b"", b""), NOW)) == cas(new.ca)
