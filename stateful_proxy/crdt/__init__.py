"""Replicated entities: values that every proxy of a service may change at the same time, and that converge."""
