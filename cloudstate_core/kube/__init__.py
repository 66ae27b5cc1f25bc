"""The Kubernetes client: the one place that knows `kubernetes`. Typed reads, server-side apply, caches, work queues, leadership."""
