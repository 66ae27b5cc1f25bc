"""The network of a revision (pure): the Service that Routes send to, and slices that point it at activators.

Knative's routes send to a Service named like the revision, whoever made it. Its ports have the shape of Knative's own public service.
Slices are never empty once an activator was seen: an ingress drops every host of a service without endpoints.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from autoscaler.cluster.naming import H2C, MANAGED_BY, MANAGER, REVISION_UID, SLICE_MANAGED_BY, data_port
from cloudstate_core.kube.objects import Endpoints, EndpointSlice, PodAutoscaler, Service

Body = dict[str, Any]
NetworkObject = Service | EndpointSlice | Endpoints
HTTPS = 8112


def public_service(pa: PodAutoscaler) -> Body:
    """Service `<revision>`: no selector, ports as Knative's."""
    return {"metadata": _metadata(pa, pa.metadata.name), "spec": {"ports": [_http(pa), _tcp("https", 443, HTTPS)], "type": "ClusterIP"}}


def private_service(pa: PodAutoscaler) -> Body:
    """Service `<revision>-private`: selects the pods, for monitoring and for people."""
    http, target = _http(pa), data_port(pa)
    ports = [
        http | {"port": 80},
        _tcp("https", 443, HTTPS),
        _tcp("http-autometric", 9090, 9090),
        _tcp("http-usermetric", 9091, 9091),
        http | {"name": f"{http['name']}-istio", "port": target},
    ]
    selector = {REVISION_UID: pa.metadata.labels.get(REVISION_UID, "")}
    return {"metadata": _metadata(pa, private_name(pa)), "spec": {"ports": ports, "selector": selector, "type": "ClusterIP"}}


def private_name(pa: PodAutoscaler) -> str:
    """Name of the Service that selects a revision's pods."""
    return f"{pa.metadata.name}-private"


def public_slice(pa: PodAutoscaler, activators: Sequence[str]) -> Body:
    """The EndpointSlice of `<revision>`: some activators' addresses, on the port of the revision's protocol."""
    metadata = _metadata(pa, slice_name(pa))
    metadata["labels"] |= {"kubernetes.io/service-name": pa.metadata.name, SLICE_MANAGED_BY: MANAGER}
    http = _http(pa)
    return {
        "metadata": metadata,
        "addressType": "IPv6" if any(":" in address for address in activators) else "IPv4",
        "endpoints": [{"addresses": [address], "conditions": {"ready": True}} for address in sorted(activators)],
        "ports": [{"name": http["name"], "port": http["targetPort"], "protocol": "TCP"}],
    }


def public_endpoints(pa: PodAutoscaler, activators: Sequence[str]) -> Body:
    """The same as an Endpoints object, for ingresses that do not read slices; the label keeps it from being copied into another slice."""
    metadata = _metadata(pa, pa.metadata.name)
    metadata["labels"] |= {"endpointslice.kubernetes.io/skip-mirror": "true"}
    http = _http(pa)
    ports = [{"name": http["name"], "port": http["targetPort"], "protocol": "TCP"}]
    return {"metadata": metadata, "subsets": [{"addresses": [{"ip": address} for address in sorted(activators)], "ports": ports}]}


def slice_name(pa: PodAutoscaler) -> str:
    """Name of the EndpointSlice of `<revision>`."""
    return f"{pa.metadata.name}-activators"


def chosen(revision: str, activators: Sequence[str], count: int) -> list[str]:
    """`count` of the activators for a revision, the same ones for as long as they are there (rendezvous hashing)."""

    def rank(address: str) -> bytes:
        return hashlib.blake2b(f"{revision} {address}".encode(), digest_size=8).digest()

    return sorted(sorted(activators, key=rank)[: max(1, count)])


def leader_slice(service: str, namespace: str, address: str, port: int) -> Body:
    """The slice that leads the coordination Service to the leader's pod."""
    return {
        "metadata": {
            "name": f"{service}-leader",
            "namespace": namespace,
            "labels": {"kubernetes.io/service-name": service, SLICE_MANAGED_BY: MANAGER},
        },
        "addressType": "IPv6" if ":" in address else "IPv4",
        "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
        "ports": [{"name": "grpc", "port": port, "protocol": "TCP"}],
    }


def _http(pa: PodAutoscaler) -> Body:
    """The port that carries the revision's traffic: 80 for HTTP/1.1, 81 for HTTP/2 without TLS."""
    if data_port(pa) == H2C:
        return _tcp("http2", 81, H2C) | {"appProtocol": "kubernetes.io/h2c"}
    return _tcp("http", 80, data_port(pa))


def _tcp(name: str, port: int, target: int) -> Body:
    return {"name": name, "port": port, "protocol": "TCP", "targetPort": target}


def _metadata(pa: PodAutoscaler, name: str) -> Body:
    owner = {
        "apiVersion": "autoscaling.internal.knative.dev/v1alpha1",
        "kind": "PodAutoscaler",
        "name": pa.metadata.name,
        "uid": pa.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
    labels = {key: value for key, value in pa.metadata.labels.items() if key.startswith("serving.knative.dev/")}
    labels[MANAGED_BY] = MANAGER
    return {"name": name, "namespace": pa.metadata.namespace, "labels": labels, "ownerReferences": [owner]}


def owned_by(found: NetworkObject, pa: PodAutoscaler) -> bool:
    """True when an object's controller is this PodAutoscaler, and not another one that had its name."""
    return any(owner.controller and owner.uid == pa.metadata.uid for owner in found.metadata.owner_references)


def is_as_wanted(found: NetworkObject, body: Body) -> bool:
    """True when an object is as `body` would make it, as far as traffic depends on it."""
    if not body["metadata"]["labels"].items() <= found.metadata.labels.items():
        return False
    if isinstance(found, Service):
        wanted = [(p["name"], p["port"], p["targetPort"], p.get("appProtocol", "")) for p in body["spec"]["ports"]]
        ports = [(p.name, p.port, p.target_port, p.app_protocol) for p in found.spec.ports]
        return ports == wanted and found.spec.selector == body["spec"].get("selector", {})
    if isinstance(found, Endpoints):
        subsets = [([a.ip for a in subset.addresses], [(p.name, p.port) for p in subset.ports]) for subset in found.subsets]
        return subsets == [([a["ip"] for a in s["addresses"]], [(p["name"], p["port"]) for p in s["ports"]]) for s in body["subsets"]]
    addresses = [list(endpoint.addresses) for endpoint in found.endpoints if endpoint.conditions.ready is not False]
    return (
        addresses == [endpoint["addresses"] for endpoint in body["endpoints"]]
        and len(addresses) == len(found.endpoints)
        and [(p.name, p.port) for p in found.ports] == [(p["name"], p["port"]) for p in body["ports"]]
    )
