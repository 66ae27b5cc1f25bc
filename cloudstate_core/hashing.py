"""Which shard an entity belongs to. Part of the journal's layout: changing it would fork histories.

shard = big-endian 64-bit blake2b-8(persistence_id, one zero byte, entity_id) mod shard count; vectors in docs/reference/hashing.md.
"""

from __future__ import annotations

from hashlib import blake2b

HASH_NAME = "blake2b-8/zero-byte/v1"
"""Name of hash and key form in a journal's layout."""


def shard_of(persistence_id: str, entity_id: str, shard_count: int) -> int:
    """The shard of an entity, 0 ≤ shard < shard_count."""
    key = persistence_id.encode() + b"\0" + entity_id.encode()
    return int.from_bytes(blake2b(key, digest_size=8).digest(), "big") % shard_count
