"""What `fieldprint memory` prints: tables on a terminal, one JSON object with `--json`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fieldprint.cli.output import print_table

if TYPE_CHECKING:
    from fieldprint.memory import Found, Memory, Packed

SHOWN = 200  # characters of a text in a table


def memory_fields(memory: "Memory") -> dict[str, Any]:
    """A memory as JSON."""
    from fieldprint.anchor.artifact import format_time

    return {
        "id": memory.id,
        "kind": memory.kind,
        "time": format_time(memory.time),
        "source": memory.source,
        "taint": list(memory.taint),
        "parents": list(memory.parents),
        "text": memory.text,
    }


def print_memory(
    memory: "Memory",
    as_json: bool,
    title: str,
    *,
    dry_run: bool = False,
    ancestors: Sequence[str] | None = None,
) -> None:
    """One memory, with all of its text."""
    fields = memory_fields(memory)
    more: dict[str, Any] = {"dry_run": True} if dry_run else {}
    if ancestors is not None:
        more["ancestors"] = list(ancestors)
    if as_json:
        typer.echo(json.dumps(fields | more, ensure_ascii=False))
        return
    print_table(title, ("what", "value"), [(name, _cell(value)) for name, value in (fields | more).items()])


def print_found(
    found: Sequence["Found"], as_json: bool, *, packed: "Packed | None" = None, out: Path | None = None
) -> None:
    """What a search found, or what was packed, with the labels of each and of the candidate."""
    if as_json:
        rows = [{"score": round(each.score, 6), **memory_fields(each.memory)} for each in found]
        candidate = {} if packed is None else _candidate(packed, out)
        typer.echo(json.dumps(candidate | {"memories": rows}, ensure_ascii=False))
        return
    cells = [
        (
            f"{each.score:.3f}",
            each.memory.id[:16],
            each.memory.kind,
            _cell(each.memory.taint),
            _short(each.memory.text),
        )
        for each in found
    ]
    print_table(f"{len(found)} memories", ("cosine", "id", "kind", "labels", "text"), cells)
    if packed is not None:
        typer.echo(
            f"{'packed ' + str(out) if out else 'would be packed'}: candidate {packed.candidate.digest[:16]}, "
            f"{packed.tokens} tokens, labels {', '.join(packed.candidate.taint) or 'none'}"
        )
        if packed.refused:
            typer.echo(
                f"left out, with a control token in it: {', '.join(key[:16] for key in packed.refused)}"
            )


def _candidate(packed: "Packed", out: Path | None) -> dict[str, Any]:
    artifact = packed.candidate
    return {
        "candidate": artifact.digest,
        "file": None if out is None else str(out),
        "tokens": packed.tokens,
        "taint": list(artifact.taint),
        "parents": list(artifact.parents),
        "refused": list(packed.refused),
    }


def _cell(value: Any) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, list | tuple) else str(value)


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"
