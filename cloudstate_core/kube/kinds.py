"""The kinds that this product reads or writes."""

from __future__ import annotations

from cloudstate_core.kube import objects
from cloudstate_core.kube.api import Kind

POD = Kind("", "v1", "pods", "Pod", objects.Pod)
SERVICE = Kind("", "v1", "services", "Service", objects.Service)
SECRET = Kind("", "v1", "secrets", "Secret", objects.Secret)
CONFIG_MAP = Kind("", "v1", "configmaps", "ConfigMap", objects.ConfigMap)
NAMESPACE = Kind("", "v1", "namespaces", "Namespace", objects.Object)
EVENT = Kind("events.k8s.io", "v1", "events", "Event", objects.Object)
DEPLOYMENT = Kind("apps", "v1", "deployments", "Deployment", objects.Deployment)
ENDPOINTS = Kind("", "v1", "endpoints", "Endpoints", objects.Endpoints)
ENDPOINT_SLICE = Kind("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice", objects.EndpointSlice)
LEASE = Kind("coordination.k8s.io", "v1", "leases", "Lease", objects.Lease)
NETWORK_POLICY = Kind("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy", objects.Object)
MUTATING_WEBHOOK = Kind(
    "admissionregistration.k8s.io", "v1", "mutatingwebhookconfigurations", "MutatingWebhookConfiguration", objects.WebhookConfiguration
)
VALIDATING_WEBHOOK = Kind(
    "admissionregistration.k8s.io", "v1", "validatingwebhookconfigurations", "ValidatingWebhookConfiguration", objects.WebhookConfiguration
)
KNATIVE_SERVICE = Kind("serving.knative.dev", "v1", "services", "Service", objects.Object)
REVISION = Kind("serving.knative.dev", "v1", "revisions", "Revision", objects.Revision)
ROUTE = Kind("serving.knative.dev", "v1", "routes", "Route", objects.Route)
POD_AUTOSCALER = Kind("autoscaling.internal.knative.dev", "v1alpha1", "podautoscalers", "PodAutoscaler", objects.PodAutoscaler)
AUTOSCALING_POLICY = Kind("autoscaling.cloudstate.io", "v1alpha1", "autoscalingpolicies", "AutoscalingPolicy", objects.AutoscalingPolicy)
STATEFUL_STORE = Kind("cloudstate.io", "v1alpha1", "statefulstores", "StatefulStore", objects.StatefulStore)
SHARD_MAP = Kind("internal.cloudstate.io", "v1alpha1", "shardmaps", "ShardMap", objects.ShardMap)
