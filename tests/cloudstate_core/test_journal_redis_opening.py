"""Opening a journal in Redis: addresses, passwords, TLS, and every server or keyspace that cannot be used."""

from __future__ import annotations

import datetime
import ipaddress
import logging
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cloudstate_core.journal.api import (
    Activate,
    Active,
    Appended,
    Check,
    Claim,
    Current,
    Fenced,
    Incompatible,
    Journal,
    JournalError,
    Refused,
    Token,
    Uninitialised,
)
from cloudstate_core.journal.opening import open_journal, shown
from cloudstate_core.journal.redis_address import redis_address
from cloudstate_core.journal.redis_journal import RedisJournal
from tests.journals import CART, PATIENCE, append, bound, run

SHARDS = 4


Open = Callable[..., RedisJournal]


@pytest.fixture
def journal(open_redis: Open, shared_redis: Any) -> RedisJournal:
    return open_redis(shared_redis)


# Opening ----------------------------------------------------------------------------------------------------------------


def test_another_layout_is_refused_and_both_are_told(open_redis: Open, shared_redis: Any) -> None:
    open_redis(shared_redis)
    with pytest.raises(Incompatible, match=r"has 4 shards.*asked for 16"):
        open_redis(shared_redis, 16)


def test_fences_without_a_layout_are_not_taken_for_a_new_keyspace(open_redis: Open, shared_redis: Any, keyspace: str) -> None:
    open_redis(shared_redis)
    shared_redis.cli("DEL", f"cs:{{{keyspace}}}:layout")
    with pytest.raises(JournalError, match="has shards but no layout"):
        open_redis(shared_redis)


@pytest.mark.parametrize(
    ("options", "database", "message"),
    [
        ((), "99", "DB index is out of range"),
        (("--maxmemory-policy", "allkeys-lru"), "0", "must be noeviction"),
        (("--cluster-enabled", "yes"), "0", "Redis Cluster, which is not supported"),
        (("--requirepass", "secret-1"), "0", "Authentication required"),
    ],
)
def test_a_server_that_will_not_do_is_told(open_redis: Open, redis_servers: Any, options: tuple[str, ...], database: str, message: str) -> None:
    server = redis_servers(*options)
    with pytest.raises(JournalError, match=message):
        open_redis(server, url=server.url[:-1] + database)


def test_a_password_opens_and_is_never_told(open_redis: Open, redis_servers: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server = redis_servers("--requirepass", "right@pass/word")
    base = server.url.removeprefix("redis://")
    with pytest.raises(JournalError) as caught:
        open_redis(server, url=f"redis://default:wrong-secret@{base}")
    assert "invalid username-password pair" in str(caught.value)
    assert isinstance(run(open_redis(server, url=f"redis://default:right%40pass%2Fword@{base}"), Check(0, Token(0, b"")))[0], Fenced)
    journal = open_redis(server, url=f"redis://:wrong-secret@{base}", password="right@pass/word")
    assert isinstance(run(journal, Check(0, Token(0, b"")))[0], Fenced)
    told = caplog.text + str(caught.value) + repr(redis_address(f"redis://u:wrong-secret@{base}"))
    assert "wrong-secret" not in told
    assert "right" not in told


def test_a_user_needs_only_the_permissions_that_are_told(open_redis: Open, redis_servers: Any) -> None:
    server = redis_servers()
    base = server.url.removeprefix("redis://")
    rule = ("~cs:*", "+@hash", "+@list", "+@string", "+@scripting", "+exists", "+info", "+ping", "+select")
    server.cli("ACL", "SETUSER", "cart", "on", ">pw", *rule)
    journal = open_redis(server, url=f"redis://cart@{base}", password="pw")
    assert run(journal, append(bound(journal), 0, command_id="c")) == [Appended(1)]
    server.cli("ACL", "SETUSER", "poor", "on", ">pw", "~cs:*", "+@read", "+info")
    with pytest.raises(JournalError, match="lacks permissions"):
        open_redis(server, url=f"redis://poor@{base}", password="pw")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis://", "a URL without a host"),
        ("redis:host", "a URL without a host"),
        ("redis://u:secret@host:port/0", "Port could not be cast"),
        ("redis://u:secret@host:1/one", "database 'one' is not a number"),
        ("redis://u:secret@host:1/0?socket_timeout=1", "takes no options"),
        ("nosuch://u:secret@host", "must be memory:, sqlite:PATH"),
    ],
)
def test_a_bad_url_is_told_without_its_password(url: str, message: str) -> None:
    told: list[Any] = []
    assert open_journal(url, "ks", 4, None, told.append) is None  # type: ignore[arg-type]
    assert isinstance(told[0], JournalError)
    assert message in str(told[0])
    assert "secret" not in str(told[0])


def test_an_address_is_shown_without_user_and_password() -> None:
    assert shown("redis://user:p%40ss@word@host:1/0") == "redis://host:1/0"
    assert shown("sqlite:/a/b@c.db") == "sqlite:/a/b@c.db"
    assert str(redis_address("rediss://user:pass@[::1]")) == "rediss://[::1]:6379/0"


def test_a_proxy_on_another_store_does_not_load_the_redis_package() -> None:
    code = "import sys, stateful_proxy.app; sys.exit(sum(name.split('.')[0] in ('redis', 'hiredis') for name in sys.modules))"
    root = pathlib.Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


# TLS --------------------------------------------------------------------------------------------------------------------


def certificate(folder: pathlib.Path) -> None:
    """A certificate for 127.0.0.1 that is its own authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "redis")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(key.private_bytes(*form))
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))


def test_tls_is_spoken_with_servers_that_can_be_trusted_only(
    keyspace: str, redis_servers: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    certificate(tmp_path)
    files = ("--tls-cert-file", str(tmp_path / "cert.pem"), "--tls-key-file", str(tmp_path / "key.pem"), "--tls-auth-clients", "no")
    server = redis_servers("--tls-port", "TLS_PORT", *files)
    url = f"rediss://127.0.0.1:{server.tls_port}/0"
    opened: Future[Journal | JournalError] = Future()
    journal = RedisJournal(redis_address(url), keyspace, SHARDS, opened.set_result)
    while "certificate verify failed" not in caplog.text:
        assert not opened.done()
        time.sleep(0.01)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    assert opened.result(PATIENCE) is journal
    assert isinstance(run(journal, Claim(0, -1, 1, "p", b"n"), Activate(0, Token(1, b"n"), CART, b"b"))[1], Active)
    journal.close()
    assert f"cs:{{{keyspace}}}:layout" in server.cli("--scan")


def test_an_entity_that_is_ahead_of_its_shard_is_not_taken_back(journal: RedisJournal, shared_redis: Any, keyspace: str) -> None:
    token = bound(journal)
    shared_redis.cli("HSET", f"cs:{{{keyspace}:0}}:h:4.3:cart:ann", "epoch", "9")
    assert run(journal, Activate(0, token, CART, b"c")) == [Fenced(9)]


def test_an_entity_whose_events_cannot_be_read_is_refused_alone(journal: RedisJournal, shared_redis: Any, keyspace: str) -> None:
    token = bound(journal)
    run(journal, append(token, 0))
    shared_redis.cli("LSET", f"cs:{{{keyspace}:0}}:e:4.3:cart:ann", "0", "no length")
    refused, current = run(journal, Activate(0, token, CART, b"c"), Check(0, token))
    assert isinstance(refused, Refused)
    assert "cannot be read" in refused.reason
    assert current == Current()


@pytest.mark.parametrize("gone", ["e", "h"])
def test_an_entity_whose_keys_are_gone_is_not_served(journal: RedisJournal, shared_redis: Any, keyspace: str, gone: str) -> None:
    token = bound(journal)
    run(journal, append(token, 0), append(token, 1))
    shared_redis.cli("DEL", f"cs:{{{keyspace}:0}}:{gone}:4.3:cart:ann")
    (refused,) = run(journal, Activate(0, token, CART, b"c"))
    assert isinstance(refused, Refused)
    assert "the store lost keys" in refused.reason


def test_a_key_of_another_kind_fails_alone_and_nothing_is_written(journal: RedisJournal, shared_redis: Any, keyspace: str) -> None:
    token = bound(journal)
    events = f"cs:{{{keyspace}:0}}:e:4.3:cart:ann"
    shared_redis.cli("SET", events, "not a list")
    refused, current = run(journal, append(token, 0, command_id="c"), Check(0, token))
    assert isinstance(refused, Refused)
    assert "nothing was written: WRONGTYPE" in refused.reason
    assert current == Current()
    shared_redis.cli("DEL", events)
    assert run(journal, append(token, 0, command_id="c")) == [Appended(1)]


def test_a_shard_that_is_not_there_is_an_error(journal: RedisJournal) -> None:
    assert run(journal, Check(SHARDS, Token(0, b"")), append(Token(1, b"x"), 0)) == [Uninitialised(), Fenced(0)]
    assert run(journal, Claim(0, 0, 1, "p", b"x"), Check(0, Token(1, b"x")))[1] == Current()
