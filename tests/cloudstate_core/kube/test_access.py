"""Credentials: kubeconfig files, tokens that change, the pod's service account over TLS."""

from __future__ import annotations

import datetime
import ipaddress
import pathlib
import ssl

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from kubernetes.aio.config import incluster_config

from cloudstate_core.kube.api import KubeError
from cloudstate_core.kube.client import KubeClient
from cloudstate_core.kube.kinds import CONFIG_MAP

from .conftest import kubeconfig
from .fake_api import Answer, FakeApi, refusing


def only(api: FakeApi, *tokens: str) -> Answer:
    """A GET for those who show one of the tokens."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization", "").lower() not in {f"bearer {token}" for token in tokens}:
            return await refusing(401, "Unauthorized")(request)
        return await api._get(request)

    return answer


async def test_a_token_file_that_changes_is_read_anew_once_the_old_token_is_refused(api: FakeApi, tmp_path: pathlib.Path) -> None:
    api.put("configmaps", "a")
    token = tmp_path / "token"
    token.write_text("one")
    client = await KubeClient.connect(kubeconfig(tmp_path, api.url, tokenFile=str(token)))
    try:
        api.always["GET"] = only(api, "one")
        await client.get(CONFIG_MAP, "n", "a")
        token.write_text("two\n")
        api.always["GET"] = only(api, "two")
        with pytest.raises(KubeError, match="Unauthorized"):
            await client.get(CONFIG_MAP, "n", "a")
        await client.get(CONFIG_MAP, "n", "a")
    finally:
        await client.close()


async def test_a_late_refusal_of_the_old_token_does_not_load_the_new_one_again(api: FakeApi, tmp_path: pathlib.Path) -> None:
    config = pathlib.Path(kubeconfig(tmp_path, api.url, token="one"))
    client = await KubeClient.connect(str(config))
    try:
        access = client._access
        assert await access.authorization() == "Bearer one"
        kubeconfig(tmp_path, api.url, token="two")
        access.refused("Bearer one")
        assert await access.authorization() == "Bearer two"
        kubeconfig(tmp_path, api.url, token="three")
        access.refused("Bearer one")
        assert await access.authorization() == "Bearer two"
    finally:
        await client.close()


async def test_credentials_that_cannot_be_read_for_a_while_are_an_error_of_the_call(api: FakeApi, tmp_path: pathlib.Path) -> None:
    """A control loop waits and tries again: no other exception may reach it."""
    api.put("configmaps", "a")
    config = pathlib.Path(kubeconfig(tmp_path, api.url, token="one"))
    client = await KubeClient.connect(str(config))
    try:
        api.always["GET"] = only(api, "two")
        whole = config.read_text()
        for broken in ("", "{", "a: [", '{"clusters": 1}'):
            config.write_text(broken)
            for _ in range(2):
                with pytest.raises(KubeError):
                    await client.get(CONFIG_MAP, "n", "a")
        config.write_text(whole.replace("one", "two"))
        assert (await client.get(CONFIG_MAP, "n", "a")).metadata.name == "a"
    finally:
        await client.close()


@pytest.mark.parametrize("content", [None, "", "a: [", '{"current-context": "x"}', '{"clusters": [{"name": "c"}]}'])
async def test_a_useless_kubeconfig_is_refused(tmp_path: pathlib.Path, content: str | None) -> None:
    path = tmp_path / "config"
    if content is not None:
        path.write_text(content)
    with pytest.raises(KubeError, match="no way to the API server"):
        await KubeClient.connect(str(path))


async def test_a_useless_certificate_is_refused(tmp_path: pathlib.Path) -> None:
    path = pathlib.Path(kubeconfig(tmp_path, "https://127.0.0.1:1", token="x"))
    path.write_text(path.read_text().replace('"server"', '"certificate-authority-data": "bm9uZQ==", "server"'))
    with pytest.raises(KubeError, match="certificates"):
        await KubeClient.connect(str(path))


async def test_outside_of_a_cluster_without_a_kubeconfig_there_is_no_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(KubeError, match="Service host/port is not set"):
        await KubeClient.connect()


def self_signed(folder: pathlib.Path) -> tuple[pathlib.Path, ssl.SSLContext]:
    """A certificate for 127.0.0.1, which is its own authority, and a server's context with it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - datetime.timedelta(days=1), now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    authority, private = folder / "ca.crt", folder / "tls.key"
    authority.write_bytes(certificate.public_bytes(pem))
    private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(authority, private)
    return authority, context


async def test_a_pods_service_account_over_tls_with_tokens_that_rotate(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority, context = self_signed(tmp_path)
    token = tmp_path / "token"
    token.write_text("one\n")
    api = FakeApi()
    await api.start(context)
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", api.url.rpartition(":")[2])
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(token))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(authority))
    api.put("configmaps", "a")
    client = await KubeClient.connect()
    try:
        api.always["GET"] = only(api, "one")
        await client.get(CONFIG_MAP, "n", "a")
        token.write_text("two")
        api.always["GET"] = only(api, "two")
        with pytest.raises(KubeError, match="Unauthorized"):
            await client.get(CONFIG_MAP, "n", "a")
        await client.get(CONFIG_MAP, "n", "a")
    finally:
        await client.close()
        await api.close()


async def test_a_server_with_another_certificate_gets_no_token(tmp_path: pathlib.Path) -> None:
    _, context = self_signed(tmp_path)
    api = FakeApi()
    await api.start(context)
    client = await KubeClient.connect(kubeconfig(tmp_path, api.url, token="secret"))
    try:
        with pytest.raises(KubeError, match="Connection"):
            await client.get(CONFIG_MAP, "n", "a")
        assert not api.asked
    finally:
        await client.close()
        await api.close()
