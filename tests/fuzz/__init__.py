"""Targets of the fuzzer: what strangers send (functions and callers), in any form and order. See `targets`."""
