"""The autoscaler on a cluster: PodAutoscalers of our class in, their status, scale, network and shards out."""
