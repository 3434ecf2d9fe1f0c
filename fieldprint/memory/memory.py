"""One memory: a text with its kind, its taint labels, its lineage, where it came from and when."""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from hashlib import sha256
from typing import Any

import rfc8785

from fieldprint.anchor.artifact import check_digest, check_label, check_text, format_time
from fieldprint.errors import FormatError

KINDS = ("memory", "assertion", "observation")
SOURCE = re.compile(r"[a-z0-9][a-z0-9._:/@+-]{0,127}")
LINE_ENDS = "\u2028\u2029"  # ends of a line to some readers and not to others


@dataclass(frozen=True)
class Memory:
    """A text that was remembered, and where it came from.

    kind: memory, assertion or observation; identity and policy are signed, never remembered.
    source: who or what it came from, [a-z0-9._:/@+-]. time: UTC, whole seconds.
    taint: labels, sorted. parents: hex ids of memories, or digests of anchors, sorted.
    """

    text: str
    kind: str
    source: str
    time: datetime
    taint: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_text(self.text)
        if any(character in self.text for character in LINE_ENDS):
            raise FormatError("the text holds a line end other than the newline (U+2028 or U+2029)")
        if self.kind not in KINDS:
            raise FormatError(f"a memory's kind must be one of {', '.join(KINDS)}")
        if not SOURCE.fullmatch(self.source):
            raise FormatError(
                f"a memory's source must match [a-z0-9._:/@+-]{{1,128}}, not {self.source[:80]!r}"
            )
        if self.time.utcoffset() is None or self.time.microsecond:
            raise FormatError("a memory's time must be in UTC and whole seconds")
        check_labels(self.taint)
        for parent in self.parents:
            check_digest(parent, "a parent")
        for items, what in ((self.taint, "taint"), (self.parents, "parents")):
            if list(items) != sorted(set(items)):
                raise FormatError(f"{what} must be sorted, each once")

    @cached_property
    def id(self) -> str:
        """Hex SHA-256 of the canonical content: all fields but the taint, since labels may be added later.

        {"kind": "observation", "parents": [], "source": "cli", "text": "...", "time": "2026-11-24T00:00:00Z", "v": 1}
        """
        content: dict[str, Any] = {
            "kind": self.kind,
            "parents": list(self.parents),
            "source": self.source,
            "text": self.text,
            "time": format_time(self.time),
            "v": 1,
        }
        return sha256(rfc8785.dumps(content)).hexdigest()


def check_labels(labels: Collection[str]) -> None:
    """Raise FormatError unless all of them are taint labels, in any order."""
    for label in labels:
        check_label(label)


def union(*labels: Iterable[str]) -> tuple[str, ...]:
    """Every label of any of them, sorted: the join of the lattice of label sets."""
    return tuple(sorted(set().union(*labels)))


def whole_second(time: datetime | None = None) -> datetime:
    """`time`, or now, in UTC and without its fraction of a second."""
    return (time or datetime.now(UTC)).astimezone(UTC).replace(microsecond=0)
