"""The manifests of a release, every variant of them, as a real API server takes them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import subprocess

import pytest
import yaml

from cloudstate_core.kube import kinds
from cloudstate_core.kube.api import Conflict
from cloudstate_core.kube.client import KubeClient

ROOT = pathlib.Path(__file__).resolve().parents[2]
KUBECTL = str(ROOT / "e2e/cluster/kubectl.sh")
VARIANTS = ["base", *sorted(f"overlays/{path.name}" for path in (ROOT / "deploy/knative/overlays").iterdir())]


def rendered(variant: str) -> str:
    return subprocess.run(
        [KUBECTL, "kustomize", str(ROOT / "deploy/knative" / variant)], capture_output=True, text=True, check=True, timeout=300
    ).stdout


def dry_run(manifests: str) -> subprocess.CompletedProcess[str]:
    command = [KUBECTL, "--kubeconfig", os.environ["CLOUDSTATE_ENVTEST"], "apply", "--server-side", "--dry-run=server", "-f", "-"]
    return subprocess.run([*command, "--validate=strict"], input=manifests, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.parametrize("variant", VARIANTS)
async def test_a_variant_is_accepted_without_a_warning(variant: str, kube: KubeClient) -> None:
    with contextlib.suppress(Conflict):
        await kube.create(kinds.NAMESPACE, "", {"metadata": {"name": "cloudstate-system"}})
    done = await asyncio.to_thread(dry_run, rendered(variant))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("variant", "replicas"), [("base", {1}), ("overlays/high-availability", {2})])
def test_replicas(variant: str, replicas: set[int]) -> None:
    documents = [document for document in yaml.safe_load_all(rendered(variant)) if document["kind"] == "Deployment"]
    assert len(documents) == 3
    assert {document["spec"]["replicas"] for document in documents} == replicas


def test_endpoints_are_written_where_the_ingress_needs_them() -> None:
    documents = {d["metadata"]["name"]: d for d in yaml.safe_load_all(rendered("overlays/endpoints")) if d["kind"] == "Deployment"}
    (container,) = documents["cloudstate-autoscaler"]["spec"]["template"]["spec"]["containers"]
    values = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert values["AUTOSCALER_WRITE_ENDPOINTS"] == "true"
    assert "POD_NAME" in values, "the patch keeps the other variables"
