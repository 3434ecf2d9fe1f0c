"""Keys with roles, a policy that uses every one of them, and the entries that they sign."""

from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fieldprint.anchor import (
    Endorsement,
    KindRule,
    Lift,
    Override,
    Policy,
    Registration,
    Revocation,
    SignerRule,
    Statement,
    StatusRoot,
    StatusRule,
    Supersession,
    sign_statement,
)
from fieldprint.note import NoteSigner
from fieldprint.registry import Promotion, Registry, event_entry

TIME = datetime(2026, 11, 24, tzinfo=UTC)
DAY = timedelta(days=1)
MODEL, OTHER_MODEL, ROOT = ("cc" * 32, "dd" * 32, "bb" * 32)
OWNER, SECOND, READER, WARDEN, CLERK, STRANGER, LOG = (
    Ed25519PrivateKey.from_private_bytes(bytes([i]) * 32) for i in range(1, 8)
)
NAMES = {"owner": OWNER, "second": SECOND, "reader": READER, "warden": WARDEN, "clerk": CLERK}
POLICY = Policy(
    {name: key.public_key().public_bytes_raw() for name, key in NAMES.items()},
    {
        "identity": KindRule(("owner", "second"), 2, 512, 60, ("untrusted",)),
        "policy": KindRule(("owner",), 1, 512, 60, ("untrusted", "web"), models=(MODEL,)),
        "memory": KindRule(("owner", "reader"), 1, 512, 60),
        "observation": KindRule(("reader",), 1, 512, 60, adds_taint=("untrusted",)),
    },
    ("owner", "second"),
    2,
    str(NoteSigner("test/log", LOG).verifier_key),
    endorsement={
        "untrusted": SignerRule(("owner", "second"), 2),
        "web": SignerRule(("owner", "second", "reader"), 1),
    },
    override=SignerRule(("warden",)),
    status=StatusRule(("clerk",)),
)
SIGNERS = {"identity": (OWNER, SECOND), "policy": (OWNER,), "memory": (READER,), "observation": (READER,)}


def digest(name: str) -> str:
    return sha256(name.encode()).hexdigest()


def anchor(name: str, kind: str = "memory", **changes: Any) -> Registration:
    """The registration of an anchor with this name, whose digest and text follow from the name."""
    values: dict[str, Any] = {
        "anchor": digest(name),
        "text_sha256": digest(f"text of {name}"),
        "not_before": TIME,
        "not_after": TIME + 30 * DAY,
    }
    for field in ("parents", "supersedes", "taint"):
        changes[field] = tuple(sorted(changes.get(field, ())))
    return Registration(name=name, kind=kind, **(values | changes))


def entry(kind: str, made: Statement, *keys: Ed25519PrivateKey) -> bytes:
    return event_entry(kind, sign_statement(made, keys))


def sign(made: Registration, *keys: Ed25519PrivateKey) -> bytes:
    return entry("sign", made, *(keys or SIGNERS[made.kind]))


def promote(made: Registration, **changes: Any) -> bytes:
    values = {"model": MODEL, "kind": made.kind, "supersedes": made.supersedes} | changes
    return Promotion(made.anchor, ROOT, **values).to_entry()


def revoke(made: Registration, *keys: Ed25519PrivateKey) -> bytes:
    return entry("revoke", Revocation(made.anchor, "lost", TIME), *(keys or (OWNER, SECOND)))


def supersede(older: Registration, newer: Registration, *keys: Ed25519PrivateKey) -> bytes:
    made = Supersession(older.anchor, newer.anchor, "better", TIME)
    return entry("supersede", made, *(keys or SIGNERS[older.kind]))


def endorse(made: Registration, *labels: str, keys: tuple[Ed25519PrivateKey, ...] = (OWNER, SECOND)) -> bytes:
    return entry("endorse", Endorsement(made.anchor, tuple(sorted(labels)), "read", TIME), *keys)


def override(number: int, scope: Any = "all", target: str = "*", **changes: Any) -> bytes:
    keys = changes.pop("keys", (WARDEN,))
    values: dict[str, Any] = {"action": "freeze", "reason": "an alarm", "time": TIME} | changes
    return entry("override", Override(scope=scope, target=target, number=number, **values), *keys)


def lift(number: int, *keys: Ed25519PrivateKey) -> bytes:
    return entry("lift", Lift(number, "a false alarm", TIME), *(keys or (WARDEN,)))


def status(registry: Registry, **changes: Any) -> bytes:
    """What the clerk signs after so many entries."""
    values: dict[str, Any] = {
        "root": registry.status_tree.root.hex(),
        "count": len(registry.revoked),
        "size": registry.position,
        "time": TIME,
        "max_age": 600,
    }
    keys = changes.pop("keys", (CLERK,))
    return entry("status", StatusRoot(**(values | changes)), *keys)


def replay(*entries: bytes, policy: Policy = POLICY) -> Registry:
    return Registry.replay(entries, policy)


def states(registry: Registry) -> dict[str, str]:
    """By name of the anchor."""
    return {record.registration.name: record.state for record in registry.anchors.values()}


def taints(registry: Registry) -> dict[str, set[str]]:
    return {record.registration.name: set(record.taint) for record in registry.anchors.values()}
