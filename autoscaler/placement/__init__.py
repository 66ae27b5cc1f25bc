"""Where shards live: who is a member, which shards should move, and how a move converges. No I/O, no clocks."""
