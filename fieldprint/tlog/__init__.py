"""The transparency log: entries to an RFC 9162 tree, its tiles and signed checkpoints, and proofs over them."""

from fieldprint.tlog.checkpoint import Checkpoint
from fieldprint.tlog.merkle import (
    leaf_hash,
    node_hash,
    prove_consistency,
    prove_inclusion,
    tree_hash,
    verify_consistency,
    verify_inclusion,
)
from fieldprint.tlog.reader import LogReader
from fieldprint.tlog.writer import Appended, LogWriter

__all__ = [
    "Appended",
    "Checkpoint",
    "LogReader",
    "LogWriter",
    "leaf_hash",
    "node_hash",
    "prove_consistency",
    "prove_inclusion",
    "tree_hash",
    "verify_consistency",
    "verify_inclusion",
]
