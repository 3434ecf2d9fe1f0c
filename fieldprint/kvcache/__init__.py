"""The K/V pages: a pool that owns the memory, and the sequences that hold pages of it."""

from fieldprint.kvcache.pool import PagePool
from fieldprint.kvcache.sequence import EVICTED, PagedSequence
from fieldprint.kvcache.slot_hash import SlotHasher

__all__ = ["EVICTED", "PagePool", "PagedSequence", "SlotHasher"]
