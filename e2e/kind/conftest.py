"""A kind cluster with Knative Serving, as `e2e/cluster/up.sh` makes it, and a namespace of its own for each test.

`make e2e` starts the cluster and names its kubeconfig in CLOUDSTATE_KIND. Tests wait on state, with a limit that only a failure reaches.
"""

from __future__ import annotations

import asyncio
import json
import os
import pathlib
import secrets
import shutil
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
CART = "cart"
CART_IMAGE = "dev.local/cloudstate-knative/shopping-cart:dev"
COMPONENTS = ("revision-controller", "autoscaler", "activator")
LIMIT = 180.0
TEST_LIMIT = 8 * LIMIT
"""Seconds that a test may take with its fixtures: several waits, each of which says what it waited for."""
Json = dict[str, Any]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A cluster on a busy machine takes its time."""
    for item in items:
        if item.path.is_relative_to(pathlib.Path(__file__).parent):
            item.add_marker(pytest.mark.timeout(TEST_LIMIT))


class Cluster:
    """Commands to one cluster, all in one namespace."""

    def __init__(self, kubeconfig: str, namespace: str) -> None:
        self.namespace = namespace
        path = f"{pathlib.Path(kubeconfig).parent / 'bin'}{os.pathsep}{os.environ['PATH']}"  # kubectl as it was built for the cluster
        self.kubeconfig = kubeconfig
        self.environment = {**os.environ, "KUBECONFIG": kubeconfig, "PATH": path}

    def kubectl(self, *arguments: str, given: str = "") -> str:
        """Output of a kubectl command; it fails with what kubectl said."""
        command = ["kubectl", "--namespace", self.namespace, *arguments]
        done = subprocess.run(
            command, env=self.environment, input=given, capture_output=True, text=True, timeout=3 * LIMIT, check=False
        )
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def make_namespace(self) -> None:
        """Make the namespace, if it is not there; it can have pods once it has the account that they run as."""
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}})
        until(lambda: bool(self.kubectl("get", "serviceaccount", "default", "--ignore-not-found", "--output", "name")), "an account for pods")

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

    def get(self, kind: str, name: str) -> Json:
        """One object."""
        found: Json = json.loads(self.kubectl("get", kind, name, "--output", "json"))
        return found

    def living(self, service: str) -> list[Json]:
        """The pods of a Knative Service that are not being deleted."""
        return [pod for pod in self.pods(service) if not pod["metadata"].get("deletionTimestamp")]

    def members(self, service: str) -> list[str]:
        """The pods that own shards of a stateful service at present."""
        shards = self.get("shardmap", service)["spec"]["shards"]
        return sorted({entry["owner"].partition("/")[0] for entry in shards if entry.get("owner")})

    def create(self, service: Json) -> None:
        """Create a Knative Service as a user would: with `kn` where it is installed, else by the YAML that `kn` would send."""
        if shutil.which("kn") is None:
            self.apply(service)
            return
        template = service["spec"]["template"]
        (container,) = template["spec"]["containers"]
        command = ["kn", "service", "create", service["metadata"]["name"], "--namespace", self.namespace, "--image", container["image"], "--no-wait"]
        for option, values in (("--annotation", template["metadata"]["annotations"]), ("--label", template["metadata"].get("labels", {}))):
            command += [part for key, value in values.items() for part in (option, f"{key}={value}")]
        command += [part for entry in container.get("env", ()) for part in ("--env", f"{entry['name']}={entry['value']}")]
        subprocess.run(command, env=self.environment, check=True, timeout=LIMIT)

    def refusal(self, body: Json) -> str:
        """What a user is told whose object is refused."""
        command = ["kubectl", "--namespace", self.namespace, "apply", "-f", "-"]
        done = subprocess.run(
            command, env=self.environment, input=json.dumps(body), capture_output=True, text=True, timeout=LIMIT, check=False
        )
        assert done.returncode != 0, "the object was accepted"
        return done.stderr

    def host(self, service: str) -> str:
        """The name under which the ingress serves a Knative Service."""
        return f"{service}.{self.namespace}.{DOMAIN}"


def look(condition: Callable[[], bool]) -> str:
    """'' when the condition holds, else what was seen: kubectl may fail, too, where an object is not there yet or the API server is busy."""
    try:
        return "" if condition() else "it does not hold"
    except AssertionError as error:
        return str(error)


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + LIMIT
    while found := look(condition):
        assert time.monotonic() < deadline, f"not within {LIMIT} s: {what}: {found}"
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


async def soon(condition: Callable[[], bool], what: str, limit: float = LIMIT) -> None:
    """Wait for a condition while the loop goes on with other work."""
    deadline = time.monotonic() + limit
    while found := await asyncio.to_thread(look, condition):
        assert time.monotonic() < deadline, f"not within {limit} s: {what}: {found}"
        await asyncio.sleep(0.2)


def seen(cluster: Cluster, reason: str, kind: str) -> bool:
    """True when an event of this reason about an object of this kind was written."""
    found = json.loads(cluster.kubectl("get", "events", "--field-selector", f"reason={reason}", "--output", "json"))["items"]
    return any(event["involvedObject"]["kind"].lower() == kind for event in found)


def cart_service(store: str, scaling: Json, cloudstate: Json | None = None, **environment: str) -> Json:
    """The shopping cart as `kn service create --annotation` sends it: annotations of ours on Service and template, scaling on the template."""
    ours = {"cloudstate.io/enabled": "true", "cloudstate.io/stateful-store": store, **(cloudstate or {})}
    container = {"image": CART_IMAGE, "env": [{"name": key, "value": value} for key, value in environment.items()]}
    template = {"metadata": {"annotations": ours | scaling, "labels": {"app": CART}}, "spec": {"containers": [container]}}
    metadata = {"name": CART, "annotations": ours}
    return {"apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": metadata, "spec": {"template": template}}


class Product:
    """The product as installed from its rendered release, and a Redis for its services."""

    def __init__(self, kubeconfig: str) -> None:
        self.system = Cluster(kubeconfig, "cloudstate-system")
        self._redis = Cluster(kubeconfig, "e2e-redis")

    def install(self) -> None:
        """What the documentation tells a user to do."""
        release = ROOT / "build/release"
        self.system.kubectl("apply", "-f", str(release / "crds.yaml"))
        until(self._served, "resource definitions that are served")
        self.system.kubectl("apply", "-f", str(release / "release.yaml"))
        for component in COMPONENTS:
            self.until_ready(component)
        until(self._reviewed, "a webhook that answers")
        self._redis.make_namespace()
        self._redis.kubectl("apply", "-f", str(ROOT / "e2e/kind/redis.yaml"))
        self._redis.kubectl("wait", "pod", "redis", "--for=condition=Ready", f"--timeout={LIMIT:.0f}s")

    def _served(self) -> bool:
        kinds = "statefulstores,autoscalingpolicies,shardmaps"
        done = subprocess.run(["kubectl", "get", kinds, "--all-namespaces"], env=self.system.environment, capture_output=True, check=False)
        return done.returncode == 0

    def _reviewed(self) -> bool:
        """True when the API server gets answers from the webhook: it may find a ready pod a moment later than who looks at the pod."""
        wrong = {**self.store("probe"), "spec": {"redis": {"host": "redis:6379"}}}  # what only the webhook refuses
        command = ["kubectl", "--namespace", "default", "apply", "--dry-run=server", "-f", "-"]
        done = subprocess.run(command, env=self.system.environment, input=json.dumps(wrong), text=True, capture_output=True, check=False)
        return "denied the request" in done.stderr

    def until_ready(self, component: str) -> None:
        """Wait for a component's rollout."""
        self.system.kubectl("rollout", "status", f"deployment/cloudstate-{component}", f"--timeout={2 * LIMIT:.0f}s")

    def restart(self, component: str) -> None:
        """Replace a component's pods and wait until the new ones are ready."""
        self.system.kubectl("rollout", "restart", f"deployment/cloudstate-{component}")
        self.until_ready(component)

    def keep_logs(self, folder: pathlib.Path) -> None:
        """What is left to look at when a test has failed."""
        folder.mkdir(parents=True, exist_ok=True)
        asked = {f"{name}.log": ["logs", "--selector", f"app.kubernetes.io/component={name}", "--prefix", "--tail=-1"] for name in COMPONENTS}
        asked["pods.txt"] = ["get", "pods", "--all-namespaces", "--output", "wide"]
        asked["events.txt"] = ["get", "events", "--all-namespaces", "--sort-by=.lastTimestamp"]
        for name, arguments in asked.items():
            with (folder / name).open("w") as file:  # as far as there is something: a pod that has not begun has no log
                command = ["kubectl", "--namespace", self.system.namespace, *arguments]
                subprocess.run(command, env=self.system.environment, stdout=file, stderr=file, timeout=LIMIT, check=False)

    def store(self, name: str) -> Json:
        """A StatefulStore on the test's Redis."""
        spec = {"redis": {"host": "redis.e2e-redis.svc.cluster.local"}}
        return {"apiVersion": "cloudstate.io/v1alpha1", "kind": "StatefulStore", "metadata": {"name": name}, "spec": spec}


@pytest.fixture(scope="session")
def product(kubeconfig: str) -> Iterator[Product]:
    """The product, installed once; its logs and the cluster's events are in build/e2e-logs at the end."""
    installed = Product(kubeconfig)
    installed.install()
    yield installed
    installed.keep_logs(ROOT / "build/e2e-logs")


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
    ours.make_namespace()
    yield ours
    if not os.environ.get("KEEP"):
        ours.kubectl("delete", "namespace", ours.namespace, "--wait=false")


class Measured:
    """Medians of what tests measured; they go to build/results/e2e.json at the end."""

    def __init__(self) -> None:
        self.rows: list[results.Row] = []

    def __call__(
        self, name: str, values: Sequence[float], unit: str, peer: tuple[str, Sequence[float], float] | None = None, bar: float | None = None
    ) -> None:
        """Record values; `peer` = its name, its values, and the bar for the ratio; `bar` is for the value where there is no peer."""
        value = statistics.median(values)
        if peer is None:
            self.rows.append(results.Row(name, value, unit, bar=bar))
        else:
            self.rows.append(results.Row(name, value, unit, peer[0], statistics.median(peer[1]), peer[2]))


@pytest.fixture(scope="session")
def measured() -> Iterator[Measured]:
    """Records figures."""
    made = Measured()
    yield made
    if made.rows:
        results.write("e2e", made.rows, ROOT / results.FOLDER)
