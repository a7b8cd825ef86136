"""The engine: score, allocate, select, compact, attend, update."""
