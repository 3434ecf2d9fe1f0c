"""`fieldprint memory`: remembering texts, finding them by meaning, and packing them into candidates for anchors."""

import json
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fieldprint.cli.inputs import (
    confirm,
    open_model,
    open_policy,
    open_registry,
    open_signers,
    read_input,
    write_new,
)
from fieldprint.cli.memory_tables import print_found, print_memory
from fieldprint.cli.options import DryRun, Json, ModelFolder, PassphraseFile, SigningKeys, Yes
from fieldprint.cli.output import print_result, progress_bar
from fieldprint.errors import FieldprintError, FormatError, ModelError

if TYPE_CHECKING:
    from fieldprint.memory import Memory, MemoryStore

app = typer.Typer(
    help="Remember texts with their labels, find them by meaning, pack them into candidates for anchors.\n\n"
    "A candidate is unsigned: `memory sign` signs it, `promote` verifies and pins it.",
    no_args_is_help=True,
)

Store = Annotated[
    str,
    typer.Option(
        "--store",
        envvar="FIELDPRINT_MEMORY",
        help="The store: a file, or the URL of a PostgreSQL database with pgvector.",
    ),
]
Taint = Annotated[list[str] | None, typer.Option("--taint", help="A taint label; may be repeated.")]
Source = Annotated[str, typer.Option("--source", help="Who or what it came from.")]
Forbid = Annotated[
    list[str] | None, typer.Option("--forbid", help="Leave out what has this label; may be repeated.")
]
Kinds = Annotated[
    list[str] | None, typer.Option("--kind", help="Only memory, assertion or observation; may be repeated.")
]
Time = Annotated[
    str | None, typer.Option("--time", help="When it was, as 2026-11-24T00:00:00Z; without it now.")
]


@app.command("add")
def memory_add(
    text: Annotated[str | None, typer.Argument(help="The text; - reads it from standard input.")] = None,
    lines: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help='Many, one JSON object a line: {"text", "kind", "source", "time", "taint", "parents"}.',
        ),
    ] = None,
    kind: Annotated[str, typer.Option("--kind", help="memory, assertion or observation.")] = "observation",
    taint: Taint = None,
    source: Source = "cli",
    time: Time = None,
    store: Store = "memory.db",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Remember a text, or the texts in a file; the store is made by the first.

    A file that was half read when something stopped it is resumed by giving it again: what is there is not added twice.
    Its lines may leave out all but the text; what they leave out comes from the options, and the time must come from one.
    """
    from fieldprint.anchor.artifact import parse_time
    from fieldprint.memory import Memory
    from fieldprint.memory.memory import union, whole_second

    if (text is None) == (lines is None):
        raise typer.BadParameter("give a text, or a file with --from")
    if lines is not None:
        _add_lines(
            store,
            lines,
            {"kind": kind, "source": source, "taint": taint or [], "time": time},
            dry_run,
            as_json,
        )
        return
    content = sys.stdin.read().rstrip("\n") if text == "-" else str(text)
    when = whole_second() if time is None else parse_time(time)
    made = Memory(content, kind, source, when, union(taint or []))
    with _open(store, create=not dry_run) as opened:
        stored = opened.preview(made) if dry_run else opened.add(made)
    print_memory(stored, as_json, "would be added" if dry_run else "added", dry_run=dry_run)


def _add_lines(store: str, path: Path, given: dict[str, Any], dry_run: bool, as_json: bool) -> None:
    """Read and check every line first, so that a wrong one is found before anything is written."""
    memories = list(_read_lines(path, given))
    if dry_run:
        fields = {"read": len(memories), "dry_run": True}
        print_result(fields, as_json, f"{len(memories)} memories would be added")
        return
    with _open(store, create=True) as opened, progress_bar("adding", len(memories), as_json) as advance:
        added = opened.add_many(memories, progress=advance)
    print_result(
        {"added": len(added.new), "known": added.known, "store": store},
        as_json,
        f"added {len(added.new)} memories to {store}, {added.known} were there",
    )


def _read_lines(path: Path, given: dict[str, Any]) -> Iterator["Memory"]:
    from fieldprint.anchor.artifact import parse_time
    from fieldprint.memory import Memory
    from fieldprint.memory.memory import union

    for number, line in enumerate(read_input(path).splitlines(), 1):
        try:
            fields = json.loads(line)
            if not isinstance(fields, dict) or not fields.keys() <= {*given, "text", "parents"}:
                raise FormatError("it is no object of text, kind, source, time, taint and parents")
            whole = {"parents": [], **given, **fields}
            texts = (whole.get("text"), whole["kind"], whole["source"])
            if not all(isinstance(value, str) for value in texts):
                raise FormatError("text, kind and source must be texts")
            for name in ("taint", "parents"):
                if not isinstance(whole[name], list) or not all(
                    isinstance(item, str) for item in whole[name]
                ):
                    raise FormatError(f"{name} must be a list of texts")
            if whole["time"] is None:
                raise FormatError("it has no time; give --time, the same when the file is added again")
            when = parse_time(whole["time"])
            labels = union(whole["taint"], given["taint"])
            yield Memory(whole["text"], whole["kind"], whole["source"], when, labels, union(whole["parents"]))
        except (ValueError, RecursionError, FieldprintError) as error:
            raise FormatError(f"{path}, line {number}: {error}") from error


@app.command("search")
def memory_search(
    query: Annotated[str, typer.Argument(help="What to look for.")],
    count: Annotated[int, typer.Option("-k", "--count", min=1, max=10_000, help="How many.")] = 10,
    kind: Kinds = None,
    forbid: Forbid = None,
    store: Store = "memory.db",
    as_json: Json = False,
) -> None:
    """Find the memories nearest in meaning, with their labels."""
    from fieldprint.memory.memory import KINDS

    with _open(store) as opened:
        found = opened.search(query, count, kinds=kind or KINDS, forbidden=forbid or [])
    print_found(found, as_json)


@app.command("show")
def memory_show(
    memory: Annotated[str, typer.Argument(help="The memory's id, or at least its first 8 digits.")],
    store: Store = "memory.db",
    as_json: Json = False,
) -> None:
    """Show a memory, and all that it was derived from."""
    with _open(store) as opened:
        found = _get(opened, memory)
        ancestors = sorted(opened.ancestors(found.id))
    print_memory(found, as_json, "memory", ancestors=ancestors)


@app.command("derive")
def memory_derive(
    text: Annotated[str, typer.Argument(help="The new text; - reads it from standard input.")],
    parent: Annotated[
        list[str] | None, typer.Option("--parent", help="A memory that it was made from; may be repeated.")
    ] = None,
    anchor: Annotated[
        list[Path] | None,
        typer.Option("--anchor", help="A signed anchor that it was made from; needs --policy and --log."),
    ] = None,
    policy: Annotated[
        Path | None, typer.Option("--policy", help="The policy that the anchors are checked against.")
    ] = None,
    log: Annotated[
        str | None,
        typer.Option("--log", help="The log that knows what they come from, and what was revoked."),
    ] = None,
    kind: Annotated[str, typer.Option("--kind", help="memory, assertion or observation.")] = "memory",
    taint: Taint = None,
    source: Source = "cli",
    time: Time = None,
    store: Store = "memory.db",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Remember a text that was made from others; it has every label of theirs."""
    from fieldprint.anchor.artifact import parse_time
    from fieldprint.memory import Memory
    from fieldprint.memory.memory import union, whole_second

    content = sys.stdin.read().rstrip("\n") if text == "-" else text
    anchors = _anchors(anchor or [], policy, log)
    with _open(store) as opened:
        parents = union([opened.resolve(each) for each in parent or []], anchors)
        if not parents:
            raise typer.BadParameter("what is derived has a --parent or an --anchor")
        when = whole_second() if time is None else parse_time(time)
        made = Memory(content, kind, source, when, union(taint or []), parents)
        stored = opened.preview(made, anchors=anchors) if dry_run else opened.add(made, anchors=anchors)
    print_memory(stored, as_json, "would be added" if dry_run else "added", dry_run=dry_run)


def _anchors(files: list[Path], policy: Path | None, log: str | None) -> dict[str, tuple[str, ...]]:
    """The labels of verified anchors all told, by digest: those of what they come from among them."""
    from fieldprint.verify import verify_anchor

    if not files:
        return {}
    if policy is None or log is None:
        raise typer.BadParameter("--anchor needs --policy, which says whose signature counts, and --log")
    trusted = open_policy(policy)
    registry = open_registry(log, trusted)
    found: dict[str, tuple[str, ...]] = {}
    for path in files:
        verified = verify_anchor(read_input(path), trusted, now=datetime.now(UTC), registry=registry)
        found[verified.digest] = tuple(sorted(registry.anchors[verified.digest].taint))
    return found


@app.command("label")
def memory_label(
    memory: Annotated[str, typer.Argument(help="The memory's id, or at least its first 8 digits.")],
    taint: Annotated[list[str], typer.Option("--taint", help="A label to add; may be repeated.")],
    store: Store = "memory.db",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Add labels to a memory and to all that was derived from it. No command takes one away."""
    from dataclasses import replace

    from fieldprint.memory.memory import union

    with _open(store) as opened:
        found = _get(opened, memory)
        labelled = replace(found, taint=union(found.taint, taint))
        stored = labelled if dry_run else opened.add_labels(found.id, taint)
    print_memory(stored, as_json, "would be labelled" if dry_run else "labelled", dry_run=dry_run)


@app.command("delete")
def memory_delete(
    memory: Annotated[str, typer.Argument(help="The memory's id, or at least its first 8 digits.")],
    store: Store = "memory.db",
    yes: Yes = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Delete a memory's text; its labels stay with what was derived from it. It cannot be undone."""
    with _open(store) as opened:
        found = _get(opened, memory)
        if not dry_run:
            confirm(f"Delete memory {found.id[:16]} for ever?", yes)
            opened.delete(found.id)
    print_memory(found, as_json, "would be deleted" if dry_run else "deleted", dry_run=dry_run)


@app.command("pack")
def memory_pack(
    query: Annotated[str, typer.Argument(help="What the memories are to be about.")],
    budget: Annotated[int, typer.Option("--budget", min=1, help="The most tokens of the text.")],
    out: Annotated[Path | None, typer.Option("--out", help="Where the candidate goes.")] = None,
    name: Annotated[str, typer.Option("--name", help="Name of the anchor.")] = "memories",
    days: Annotated[int, typer.Option("--days", min=1, max=36_500, help="How long it will be valid.")] = 30,
    count: Annotated[int, typer.Option("-k", "--count", min=1, max=10_000, help="Choose from so many.")] = 50,
    kind: Kinds = None,
    forbid: Forbid = None,
    diversity: Annotated[
        float, typer.Option("--diversity", min=0, max=1, help="Weight of being unlike the others.")
    ] = 0.3,
    recency: Annotated[float, typer.Option("--recency", min=0, max=1, help="Weight of being recent.")] = 0.1,
    half_life: Annotated[
        float, typer.Option("--half-life", min=0.001, max=36600, help="Days after which recency is half.")
    ] = 30,
    model: ModelFolder = None,
    policy: Annotated[
        Path | None, typer.Option("--policy", help="With --log: which memories are anchors.")
    ] = None,
    log: Annotated[str | None, typer.Option("--log", help="The log; anchors in it become parents.")] = None,
    store: Store = "memory.db",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Pack the best memories about something into a candidate: an anchor of kind memory that nobody has signed yet.

    Its labels are those of all that is in it. Tokens are counted by the model's tokenizer.
    """
    from fieldprint.memory import Choice, pack
    from fieldprint.memory.memory import KINDS, whole_second

    if out is None and not dry_run:
        raise typer.BadParameter("give --out, or --dry-run")
    count_tokens, reserved = _tokenizer(model)
    registered = _registered(policy, log)
    with _open(store) as opened:
        found = opened.search(query, count, kinds=kind or KINDS, forbidden=forbid or [])
        choice = Choice(diversity, recency, timedelta(days=half_life))
        packed = pack(
            opened, found, budget, count_tokens, name=name, now=whole_second(), lifetime=timedelta(days=days),
            choice=choice, is_anchor=registered.__contains__, reserved=reserved,
        )  # fmt: skip
    if out is not None and not dry_run:
        write_new(out, packed.candidate.to_bytes())
    print_found(packed.memories, as_json, packed=packed, out=None if dry_run else out)


def _registered(policy: Path | None, log: str | None) -> frozenset[str]:
    if (policy is None) != (log is None):
        raise typer.BadParameter("--log and --policy are given together")
    if policy is None or log is None:
        return frozenset()
    return frozenset(open_registry(log, open_policy(policy)).anchors)


def _tokenizer(model: Path | None) -> tuple[Callable[[str], int], frozenset[str]]:
    """How the model counts tokens, and the texts that it reads as control tokens."""
    from tokenizers import Tokenizer

    from fieldprint.adapters.model_folder import prepare_demo_model

    path = (prepare_demo_model() if model is None else model) / "tokenizer.json"
    if not path.is_file():
        raise ModelError(f"there is no {path}", remedy="Give a model folder with a tokenizer.json")
    tokenizer = Tokenizer.from_file(str(path))

    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    return count, frozenset(token.content for token in tokenizer.get_added_tokens_decoder().values())


@app.command("sign")
def memory_sign(
    candidate: Annotated[Path, typer.Argument(help="What `memory pack` wrote.")],
    key: SigningKeys,
    out: Annotated[Path, typer.Option("--out", help="Where the signed anchor goes.")],
    form: Annotated[
        str, typer.Option("--form", help="chat-system (as the template's system message) or raw.")
    ] = "chat-system",
    model: ModelFolder = None,
    passphrase_file: PassphraseFile = None,
    as_json: Json = False,
) -> None:
    """Realize a candidate under the model and sign it as it is, labels and lineage included."""
    from dataclasses import replace

    from fieldprint.anchor import AnchorArtifact, sign_anchor
    from fieldprint.pipeline import fieldprint_of

    signers = open_signers(key, passphrase_file)
    packed = AnchorArtifact.from_bytes(read_input(candidate))
    _, record = fieldprint_of(open_model(model), packed.text, form)
    artifact = replace(packed, fieldprints=(record,))
    write_new(out, sign_anchor(artifact, signers))
    print_result(
        {"anchor": artifact.digest, "tokens": record.num_tokens, "taint": artifact.taint, "file": str(out)},
        as_json,
        f"signed {out}: anchor {artifact.digest[:16]}, {record.num_tokens} tokens, "
        f"labels {', '.join(artifact.taint) or 'none'}",
    )


def _open(store: str, *, create: bool = False) -> "MemoryStore":
    try:
        from fieldprint.memory import MemoryStore, default_encoder

        return MemoryStore(store, default_encoder(), create=create)
    except ModuleNotFoundError as error:
        raise FieldprintError(
            f"this command needs {error.name}, which the base install leaves out",
            remedy="Run: pip install 'fieldprint[memory]'",
        ) from error


def _get(store: "MemoryStore", prefix: str) -> "Memory":
    found = store.get(store.resolve(prefix))
    if found is None:
        raise FieldprintError(f"there is no memory {prefix}")
    return found
