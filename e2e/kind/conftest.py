"""A kind cluster with Knative Serving, as `e2e/cluster/up.sh` makes it, and a namespace of its own for each test.

`make e2e` starts the cluster and names its kubeconfig in CLOUDSTATE_KIND. Tests wait on state, with a limit that only a failure reaches.
"""

from __future__ import annotations

import json
import os
import pathlib
import secrets
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from kn_cloudstate import results

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
INGRESS = f"127.0.0.1:{os.environ.get('INGRESS_PORT', '18080')}"
DOMAIN = "kn.test"
TESTAPP = "dev.local/cloudstate-knative/testapp:dev"
LIMIT = 90.0
Json = dict[str, Any]


class Cluster:
    """Commands to one cluster, all in one namespace."""

    def __init__(self, kubeconfig: str, namespace: str) -> None:
        self.namespace = namespace
        path = f"{pathlib.Path(kubeconfig).parent / 'bin'}{os.pathsep}{os.environ['PATH']}"  # kubectl as it was built for the cluster
        self._environment = {**os.environ, "KUBECONFIG": kubeconfig, "PATH": path}

    def kubectl(self, *arguments: str, given: str = "") -> str:
        """Output of a kubectl command; it fails with what kubectl said."""
        command = ["kubectl", "--namespace", self.namespace, *arguments]
        done = subprocess.run(
            command, env=self._environment, input=given, capture_output=True, text=True, timeout=2 * LIMIT, check=False
        )
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def apply(self, *objects: Json) -> None:
        """Apply objects, as a user would."""
        self.kubectl("apply", "-f", "-", given=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))

    def items(self, kind: str, selector: str = "") -> list[Json]:
        """The objects of a kind, by label."""
        found: list[Json] = json.loads(self.kubectl("get", kind, "--selector", selector, "--output", "json"))["items"]
        return found

    def until_ready(self, service: str) -> None:
        """Wait for a Knative Service to be Ready."""
        self.kubectl("wait", "ksvc", service, "--for=condition=Ready", f"--timeout={LIMIT:.0f}s")

    def pods(self, service: str) -> list[Json]:
        """The pods of a Knative Service, without those that end: these drain for half a minute and get no more requests."""
        found = self.items("pods", f"serving.knative.dev/service={service}")
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def until_zero(self, service: str) -> None:
        """Wait until a Knative Service is at zero."""
        until(lambda: not self.pods(service), f"no pod of {service}")

    def host(self, service: str) -> str:
        """The name under which the ingress serves a Knative Service."""
        return f"{service}.{self.namespace}.{DOMAIN}"


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, f"not within {LIMIT} s: {what}"
        time.sleep(0.3)


def knative_service(name: str, image: str = TESTAPP, *, port: str = "http1", annotations: Json | None = None, **environment: str) -> Json:
    """A Knative Service as `kn service create` sends it, `annotations` being those of the template."""
    container = {
        "image": image,
        "ports": [{"name": port, "containerPort": 8080}],
        "env": [{"name": key, "value": value} for key, value in environment.items()],
    }
    template = {"metadata": {"annotations": annotations or {}}, "spec": {"containers": [container]}}
    return {"apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": name}, "spec": {"template": template}}


@pytest.fixture(scope="session")
def kubeconfig() -> str:
    """Path of the cluster's kubeconfig."""
    path = os.environ.get("CLOUDSTATE_KIND")
    if not path:
        pytest.skip("no cluster: `make e2e` starts one, or set CLOUDSTATE_KIND to what e2e/cluster/up.sh prints")
    return path


@pytest.fixture
def cluster(kubeconfig: str) -> Iterator[Cluster]:
    """The cluster, with a namespace that lives as long as the test (KEEP=1 keeps it)."""
    ours = Cluster(kubeconfig, f"test-{secrets.token_hex(3)}")
    ours.kubectl("create", "namespace", ours.namespace)
    yield ours
    if not os.environ.get("KEEP"):
        ours.kubectl("delete", "namespace", ours.namespace, "--wait=false")


@pytest.fixture(scope="session")
def measured() -> Iterator[Callable[[str, Sequence[float], str], None]]:
    """`measured(name, values, unit)` records a median; all go to build/results/e2e.json at the end."""
    rows: list[results.Row] = []

    def add(name: str, values: Sequence[float], unit: str) -> None:
        rows.append(results.Row(name, statistics.median(values), unit))

    yield add
    if rows:
        results.write("e2e", rows, ROOT / results.FOLDER)
