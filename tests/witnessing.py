"""Builders that the tests of witnesses share: a small log in memory with fixed keys, witnesses, and a policy."""

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from fieldprint.note import Cosigner, NoteSigner, sign_note, signature_line
from fieldprint.tlog import Checkpoint, TrustPolicy, leaf_hash, merkle
from fieldprint.tlog.trust import Group, KnownLog, KnownWitness

ORIGIN = "fieldprint.example/log"
LOG = NoteSigner(ORIGIN, Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32))
NORTH, SOUTH, EAST = (
    Cosigner(f"witness.example/{name}", Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32))
    for name, seed in (("north", 11), ("south", 12), ("east", 13))
)
TIME = 1_800_000_000


def latticed(name: str = "witness.example/lattice", seed: int = 14) -> Cosigner:
    """A witness with an ML-DSA-44 key."""
    return Cosigner(name, MLDSA44PrivateKey.from_seed_bytes(bytes([seed]) * 32))


def entries(size: int, fork: bytes = b"") -> list[bytes]:
    """`size` entries; of two logs with different `fork`, all entries from the third on differ."""
    return [b"entry %d" % i + (fork if i > 1 else b"") for i in range(size)]


def hash_reader(size: int, fork: bytes = b"") -> merkle.HashReader:
    """Subtree hashes, computed from the entries each time."""
    leaves = [leaf_hash(entry) for entry in entries(size, fork)]

    def read(level: int, index: int) -> bytes:
        return merkle.fold(leaves[index << level : (index + 1) << level])

    return read


def head(size: int, fork: bytes = b"", extensions: tuple[str, ...] = ()) -> Checkpoint:
    """The log's state at `size` entries."""
    return Checkpoint(ORIGIN, size, merkle.tree_hash(size, hash_reader(size, fork)), extensions)


def signed(checkpoint: Checkpoint, *cosigners: Cosigner, signer: NoteSigner = LOG, time: int = TIME) -> bytes:
    """The note of a checkpoint, signed by the log and cosigned."""
    text = checkpoint.to_text()
    lines = [signature_line(c.name, c.cosign(text.encode(), time)) for c in cosigners]
    return sign_note(text, [signer]) + "".join(lines).encode()


def consistency(old_size: int, size: int, fork: bytes = b"") -> list[bytes]:
    """The proof that the first `old_size` entries are a prefix."""
    return merkle.prove_consistency(old_size, size, hash_reader(size, fork))


def trust(*cosigners: Cosigner, threshold: int | None = None, urls: tuple[str, ...] = ()) -> TrustPolicy:
    """The log, the witnesses, and a quorum of `threshold` of them, by default all."""
    names = tuple(f"w{i}" for i in range(len(cosigners)))
    places = urls or ("",) * len(cosigners)
    witnesses = tuple(
        KnownWitness(name, cosigner.verifier_key, url)
        for name, cosigner, url in zip(names, cosigners, places, strict=True)
    )
    groups = (Group("quorum", len(names) if threshold is None else threshold, names),) if names else ()
    return TrustPolicy((KnownLog(LOG.verifier_key),), witnesses, groups, "quorum" if names else "none")
