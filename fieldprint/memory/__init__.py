"""The Pacemaker's memory: texts with labels, found by meaning and packed into candidates for anchors."""

from fieldprint.memory.encoder import Encoder, default_encoder
from fieldprint.memory.memory import Memory
from fieldprint.memory.pack import Choice, Packed, lay_out, pack, unpack
from fieldprint.memory.store import Added, Found, MemoryStore

__all__ = [
    "Added",
    "Choice",
    "Encoder",
    "Found",
    "Memory",
    "MemoryStore",
    "Packed",
    "default_encoder",
    "lay_out",
    "pack",
    "unpack",
]
