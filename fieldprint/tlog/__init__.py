"""The transparency log: entries to an RFC 9162 tree, its tiles and signed checkpoints, and proofs over them."""

from fieldprint.tlog.checkpoint import Checkpoint
from fieldprint.tlog.history import Cosign, Cosigned, State
from fieldprint.tlog.merkle import (
    CompactRange,
    leaf_hash,
    node_hash,
    prove_consistency,
    prove_inclusion,
    prove_subtree,
    tree_hash,
    verify_consistency,
    verify_inclusion,
    verify_subtree,
)
from fieldprint.tlog.reader import LogReader
from fieldprint.tlog.storage import PosixStorage, Source, Storage, open_storage
from fieldprint.tlog.writer import Appended, LogWriter, Pending

__all__ = [
    "Appended",
    "Checkpoint",
    "CompactRange",
    "Cosign",
    "Cosigned",
    "LogReader",
    "LogWriter",
    "Pending",
    "PosixStorage",
    "Source",
    "State",
    "Storage",
    "leaf_hash",
    "node_hash",
    "open_storage",
    "prove_consistency",
    "prove_inclusion",
    "prove_subtree",
    "tree_hash",
    "verify_consistency",
    "verify_inclusion",
    "verify_subtree",
]
