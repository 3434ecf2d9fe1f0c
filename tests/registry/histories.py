"""Histories of every kind of event, believed and refused, and logs that hold them."""

import random
from collections.abc import Iterator
from pathlib import Path

from fieldprint.anchor import Registration
from fieldprint.note import NoteSigner
from fieldprint.registry import Registry
from fieldprint.tlog import LogReader, LogWriter
from tests.registry.world import (
    LOG,
    OWNER,
    POLICY,
    SECOND,
    STRANGER,
    anchor,
    digest,
    endorse,
    lift,
    override,
    promote,
    revoke,
    sign,
    status,
    supersede,
)

SIGNER = NoteSigner("test/log", LOG)
KINDS = ("memory", "memory", "observation", "policy", "identity")


def history(seed: int, length: int) -> list[bytes]:
    """Random entries, about anchors that are there, were there, or never were."""
    draw = random.Random(seed)
    known: list[Registration] = [anchor("never")]
    registry = Registry(POLICY)
    entries: list[bytes] = []
    while len(entries) < length:
        made = draw.choice(known[-12:])
        other = draw.choice(known)
        number = len(entries)
        match draw.randrange(16):
            case 0 | 1 | 2 | 3 | 4:
                taint = draw.sample(["untrusted", "web", "read"], draw.randrange(2))
                text = digest(f"text {draw.randrange(max(1, length // 3))}")
                parents = {made.anchor} if draw.randrange(2) and made.anchor in registry.anchors else set()
                older = {other.anchor} if draw.randrange(3) == 0 else set()
                kind = draw.choice(KINDS)
                new = anchor(
                    f"a{number}", kind, parents=parents, supersedes=older, taint=taint, text_sha256=text
                )
                known.append(new)
                entry = sign(new)
            case 5 | 6 | 7:
                entry = promote(made)
            case 8:
                entry = endorse(made, draw.choice(["untrusted", "web"]))
            case 9:
                entry = endorse(anchor(f"a{number + 1}"), "untrusted", "web")  # before it is registered
            case 10:
                entry = revoke(draw.choice([made, anchor(f"unregistered-{number}")]))
            case 11:
                entry = supersede(*draw.sample(known, 2)) if number > 20 else b"x"
            case 12:
                entry = override(number + 1, "kind", draw.choice(KINDS))
            case 13:
                entry = lift(draw.choice([*registry.overrides, number + 1]))
            case 14:
                entry = status(registry)
            case _:
                strange = (
                    b"x",
                    b'{"type":"sign","v":1}',
                    revoke(made, STRANGER),
                    revoke(made, OWNER, SECOND),
                )
                entry = draw.choice(strange)
        registry.apply(number, entry)
        entries.append(entry)
    return entries


def write_log(folder: Path, *batches: list[bytes]) -> LogReader:
    """A log that holds the entries, and its reader."""
    LogWriter(folder, SIGNER, create=True, max_delay=0).close()
    append(folder, *batches)
    return LogReader(folder, [POLICY.log_key])


def append(folder: Path, *batches: list[bytes]) -> None:
    with LogWriter(folder, SIGNER, max_delay=0) as writer:
        for batch in batches:
            writer.append(batch)


def prefixes(length: int, draw: random.Random) -> Iterator[int]:
    """Odd sizes up to the length."""
    size = 0
    while size < length:
        size = min(length, size + draw.choice([1, 2, 3, 7, 31]))
        yield size
