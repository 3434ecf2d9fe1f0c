"""The command line: one command per stage, --json for machines, exit codes 0 (done), 1 (a check failed), 2 (usage)."""

import json
import signal
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fieldprint.errors import CapacityError, FieldprintError, FormatError, VerificationError

if TYPE_CHECKING:
    from fieldprint.adapters.transformers import LoadedModel
    from fieldprint.anchor import Policy
    from fieldprint.generate import Event
    from fieldprint.registry import Registry

EXTRAS = ("torch", "transformers", "safetensors", "numpy")  # what the base install leaves out

app = typer.Typer(
    help="Signed texts, pinned as K/V pages that every query attends to, with a log of what was generated.\n\n"
    "Begin with `fieldprint demo`, or: keys new, policy new, log new, anchor sign, generate, verify.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
keys = typer.Typer(help="Ed25519 keys in files.", no_args_is_help=True)
policy_app = typer.Typer(help="Who may sign what.", no_args_is_help=True)
anchor = typer.Typer(help="Sign, verify, show and revoke anchors.", no_args_is_help=True)
log_app = typer.Typer(help="The transparency log.", no_args_is_help=True)
app.add_typer(keys, name="keys")
app.add_typer(policy_app, name="policy")
app.add_typer(anchor, name="anchor")
app.add_typer(log_app, name="log")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
PolicyFile = Annotated[Path, typer.Option("--policy", help="The verifier's policy (TOML).")]
LogFolder = Annotated[Path, typer.Option("--log", help="The log's folder.")]
LogKey = Annotated[Path, typer.Option("--log-key", help="Private key that signs the log's checkpoints.")]
ModelFolder = Annotated[
    Path | None, typer.Option("--model", help="A local model folder; without it the demo model is used.")
]
SigningKeys = Annotated[list[Path], typer.Option("--key", help="Private key that signs; may be repeated.")]


@keys.command("new")
def keys_new(
    name: Annotated[str, typer.Argument(help="Name of the key; files NAME.key and NAME.pub are written.")],
    folder: Annotated[Path, typer.Option("--folder", help="Where the files go.")] = Path("keys"),
    as_json: Json = False,
) -> None:
    """Make a key pair: NAME.key (private, mode 0600) and NAME.pub."""
    from fieldprint.anchor import key_id, load_public_key, new_key

    private, public = new_key(folder, name)
    _print(
        {"private": str(private), "public": str(public), "key_id": key_id(load_public_key(public))},
        as_json,
        f"wrote {private} (keep it secret) and {public}",
    )


@policy_app.command("new")
def policy_new(
    out: Annotated[Path, typer.Argument(help="The file to write.")],
    signer: Annotated[
        list[Path], typer.Option("--signer", help="Public key that may sign anchors and revocations.")
    ],
    log_pub: Annotated[Path, typer.Option("--log-pub", help="Public key of the log.")],
    origin: Annotated[str, typer.Option("--origin", help="Name of the log.")] = "fieldprint.local/log",
    threshold: Annotated[int, typer.Option("--threshold", help="Signatures that an anchor needs.")] = 1,
) -> None:
    """Write a policy: these keys sign anchors of every kind, untrusted taint is refused, anchors live a year."""
    from fieldprint.anchor import KINDS, KindRule, Policy, load_public_key
    from fieldprint.note import VerifierKey

    names = {path.stem: load_public_key(path).public_bytes_raw() for path in signer}
    if len(names) != len(signer):
        raise ValueError("two --signer files have the same name, and a policy names keys by it; rename one")
    rule = KindRule(tuple(names), threshold, 512, 366, ("untrusted",))
    verifier = VerifierKey(origin, load_public_key(log_pub).public_bytes_raw())
    policy = Policy(names, dict.fromkeys(KINDS, rule), tuple(names), threshold, str(verifier))
    Policy.from_bytes(policy.to_bytes())  # refuses what nobody could read
    _write_new(out, policy.to_bytes())
    typer.echo(f"wrote {out}")


@log_app.command("new")
def log_new(
    folder: Annotated[Path, typer.Argument(help="The log's folder.")],
    log_key: LogKey,
    origin: Annotated[str, typer.Option("--origin", help="Name of the log.")] = "fieldprint.local/log",
) -> None:
    """Create an empty log and print the key that its readers need."""
    from fieldprint.anchor import load_private_key
    from fieldprint.note import NoteSigner
    from fieldprint.tlog import LogWriter

    if (folder / "checkpoint").exists():
        raise FieldprintError(f"{folder} holds a log already", remedy="Choose another folder")
    with LogWriter(folder, NoteSigner(origin, load_private_key(log_key)), create=True) as log:
        typer.echo(log.verifier_key)


@log_app.command("show")
def log_show(
    folder: Annotated[Path, typer.Argument(help="The log's folder.")],
    policy: PolicyFile,
    start: Annotated[int, typer.Option("--start", help="First entry to show.")] = 0,
    as_json: Json = False,
) -> None:
    """Show the entries, each checked against the signed checkpoint's tree."""
    reader = _reader(folder, _policy(policy))
    checkpoint = reader.checkpoint()
    if reader.root_hash() != checkpoint.root_hash:
        raise FormatError("the tiles do not lead to the checkpoint's root")
    start = min(start, checkpoint.tree_size)
    rows = [{**_entry(entry), "index": start + i} for i, entry in enumerate(reader.entries(start))]
    if as_json:
        _print({"origin": checkpoint.origin, "tree_size": checkpoint.tree_size, "entries": rows}, True, "")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=f"{checkpoint.origin}, {checkpoint.tree_size} entries, root {checkpoint.root_hash.hex()[:16]}"
    )
    for column in ("index", "type", "what"):
        table.add_column(column)
    for row in rows:
        cells = (str(row["index"]), str(row.get("type", "?"))[:40], _summary(row))
        table.add_row(*(Text(_printable(cell)) for cell in cells))  # an entry's text is no markup
    Console().print(table)


@anchor.command("sign")
def anchor_sign(
    text: Annotated[Path, typer.Argument(help="File with the anchor's text (UTF-8).")],
    key: SigningKeys,
    out: Annotated[Path, typer.Option("--out", help="Where the signed anchor goes.")],
    name: Annotated[str, typer.Option("--name", help="Name of the anchor.")] = "anchor",
    kind: Annotated[
        str, typer.Option("--kind", help="identity, policy, memory, assertion or observation.")
    ] = "identity",
    days: Annotated[int, typer.Option("--days", help="How long it is valid.")] = 365,
    taint: Annotated[
        list[str] | None, typer.Option("--taint", help="A taint label; may be repeated.")
    ] = None,
    parent: Annotated[
        list[str] | None, typer.Option("--parent", help="Digest of a parent; may be repeated.")
    ] = None,
    supersedes: Annotated[
        list[str] | None, typer.Option("--supersedes", help="Digest of an older anchor.")
    ] = None,
    form: Annotated[
        str, typer.Option("--form", help="chat-system (as the template's system message) or raw.")
    ] = "chat-system",
    model: ModelFolder = None,
    fieldprint_out: Annotated[
        Path | None,
        typer.Option("--fieldprint-out", help="Also write the fieldprint, for machines that load it."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Realize the text under the model, and sign text and fieldprint together."""
    from fieldprint.anchor import AnchorArtifact, load_private_key, sign_anchor
    from fieldprint.pipeline import fieldprint_of

    private = [load_private_key(path) for path in key]
    content = _read(text).decode("utf-8").rstrip("\n")
    fieldprint, record = fieldprint_of(_model(model), content, form)
    now = datetime.now(UTC).replace(microsecond=0)
    artifact = AnchorArtifact(
        name=name,
        kind=kind,
        text=content,
        not_before=now,
        not_after=now + timedelta(days=days),
        parents=tuple(sorted(set(parent or []))),
        taint=tuple(sorted(set(taint or []))),
        supersedes=tuple(sorted(set(supersedes or []))),
        fieldprints=(record,),
    )
    _write_new(out, sign_anchor(artifact, private))
    if fieldprint_out is not None:
        fieldprint.save(fieldprint_out)
    _print(
        {"anchor": artifact.digest, "tokens": record.num_tokens, "root": record.root, "file": str(out)},
        as_json,
        f"signed {out}: anchor {artifact.digest[:16]}, {record.num_tokens} tokens, fieldprint {record.root[:16]}",
    )


@anchor.command("verify")
def anchor_verify(
    file: Annotated[Path, typer.Argument(help="The signed anchor.")],
    policy: PolicyFile,
    log: Annotated[Path | None, typer.Option("--log", help="The log, for revocations.")] = None,
    model_digest: Annotated[
        str | None, typer.Option("--model-digest", help="Require a fieldprint for this model.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a signed anchor against the policy; needs no model."""
    from fieldprint.verify import verify_anchor

    trusted = _policy(policy)
    registry = None if log is None else _registry(log, trusted)
    verified = verify_anchor(
        _read(file), trusted, now=datetime.now(UTC), registry=registry, model=model_digest
    )
    _print(
        {
            "anchor": verified.digest,
            "name": verified.artifact.name,
            "kind": verified.artifact.kind,
            "signers": verified.signers,
        },
        as_json,
        f"verified: {verified.artifact.kind} {verified.artifact.name}, signed by {', '.join(verified.signers)}"
        + ("" if log else " (revocation not checked: give --log)"),
    )


@anchor.command("show")
def anchor_show(file: Annotated[Path, typer.Argument(help="The signed anchor.")]) -> None:
    """Print an anchor's content as JSON. Nothing is verified."""
    from fieldprint.anchor import AnchorArtifact, Envelope

    envelope = Envelope.from_bytes(_read(file))
    artifact = AnchorArtifact.from_bytes(envelope.payload)
    content = json.loads(envelope.payload)["predicate"]
    shown = {
        "verified": False,
        "digest": artifact.digest,
        "signatures": [k for k, _ in envelope.signatures],
        **content,
    }
    typer.echo(json.dumps(shown, indent=2, ensure_ascii=False))


@anchor.command("revoke")
def anchor_revoke(
    file: Annotated[Path, typer.Argument(help="The signed anchor.")],
    key: SigningKeys,
    policy: PolicyFile,
    log: LogFolder,
    log_key: LogKey,
    reason: Annotated[str, typer.Option("--reason", help="Why; it is public.")],
) -> None:
    """Sign a revocation and append it to the log; from then on the anchor is refused."""
    from fieldprint.anchor import AnchorArtifact, Envelope, load_private_key, sign_revocation
    from fieldprint.registry import Registry, revocation_entry

    trusted = _policy(policy)
    digest = AnchorArtifact.from_bytes(Envelope.from_bytes(_read(file)).payload).digest
    now = datetime.now(UTC).replace(microsecond=0)
    entry = revocation_entry(sign_revocation(digest, reason, now, [load_private_key(path) for path in key]))
    if digest not in Registry.replay([entry], trusted).revoked:
        raise VerificationError(
            1, "these keys may not revoke under the policy", remedy="Use keys of [revocation]"
        )
    with _writer(log, log_key, trusted) as writer:
        index = writer.append([entry]).first_index
    typer.echo(f"revoked {digest[:16]}: entry {index} of {log}")


@app.command()
def promote(
    file: Annotated[Path, typer.Argument(help="The signed anchor.")],
    policy: PolicyFile,
    log: LogFolder,
    model: ModelFolder = None,
    fieldprint: Annotated[
        Path | None, typer.Option("--fieldprint", help="Load this file instead of recomputing.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write the checked fieldprint here.")] = None,
    as_json: Json = False,
) -> None:
    """Verify an anchor, realize or load its pages, compare them with the signature, pin them. A rehearsal of serving."""
    from fieldprint.kvcache import PagePool
    from fieldprint.pipeline import anchor_tokens
    from fieldprint.promote import promote_anchor
    from fieldprint.verify import verify_anchor

    trusted = _policy(policy)
    loaded = _model(model)
    registry = _registry(log, trusted)
    verified = verify_anchor(
        _read(file), trusted, now=datetime.now(UTC), registry=registry, model=loaded.digest
    )
    pool = PagePool(loaded.decoder.page_layout(16), 64)
    pinned = promote_anchor(
        verified, loaded.decoder, pool, anchor_tokens(loaded, verified), fieldprint_file=fieldprint
    )
    if out is not None:
        pinned.fieldprint.save(out)
    _print(
        {
            "anchor": verified.digest,
            "root": pinned.root,
            "tokens": pinned.num_tokens,
            "pages": len(pinned.pages),
        },
        as_json,
        f"promoted {verified.artifact.name}: {pinned.num_tokens} tokens in {len(pinned.pages)} pinned pages, "
        f"fieldprint {pinned.root[:16]} as signed",
    )


@app.command()
def generate(
    prompt: Annotated[list[str], typer.Argument(help="User messages; several are one batch.")],
    policy: PolicyFile,
    log: LogFolder,
    log_key: LogKey,
    anchor_file: Annotated[Path | None, typer.Option("--anchor", help="The signed anchor.")] = None,
    model: ModelFolder = None,
    fieldprint: Annotated[
        Path | None, typer.Option("--fieldprint", help="Load this file instead of recomputing.")
    ] = None,
    receipts: Annotated[Path, typer.Option("--receipts", help="Folder for the receipts.")] = Path("receipts"),
    g: Annotated[
        float, typer.Option("--g", help="Floor of the anchor's weight, 0 to 1; 0 is plain concatenation.")
    ] = 0.0,
    operator: Annotated[str, typer.Option("--operator", help="floor or mixture.")] = "floor",
    window: Annotated[
        int | None, typer.Option("--window", help="Sliding window of the context, in tokens.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="Length limit of an answer.")] = 128,
    temperature: Annotated[float, typer.Option("--temperature", help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option("--top-p", help="Nucleus of seeded sampling.")] = 1.0,
    seed: Annotated[int, typer.Option("--seed", help="Of seeded sampling.")] = 0,
    dtype: Annotated[str, typer.Option("--dtype", help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[
        str, typer.Option("--device", help="cpu, or cuda to decode with the GPU's kernels.")
    ] = "cpu",
    raw: Annotated[
        bool, typer.Option("--raw", help="Use the prompts as they are, without the chat template.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Generate under a pinned anchor; every page is committed before it is final. Ctrl-C ends and commits."""
    from fieldprint.generate import AttentionSettings, GenerationRequest, Sampler
    from fieldprint.pipeline import run

    trusted = _policy(policy)
    signed = None if anchor_file is None else _read(anchor_file)
    _writable_folder(receipts)
    _check_device(device)
    loaded = _model(model, dtype)
    sampler = Sampler(temperature, top_p, seed)
    requests = [
        GenerationRequest(
            tuple(loaded.encode(text) if raw else loaded.chat_tokens(text)),
            max_new_tokens,
            sampler,
            loaded.stop_ids,
        )
        for text in prompt
    ]
    longest = max(len(request.prompt) for request in requests) + max_new_tokens
    trained = loaded.decoder.config.max_positions
    if window is None and longest > trained:
        typer.echo(
            f"warning: up to {longest} positions, and the model was trained for {trained}; --window keeps to them",
            err=True,
        )
    interrupt = threading.Event()
    before = signal.signal(signal.SIGINT, _interrupter(interrupt))
    progress = _Progress(show=not as_json and sys.stderr.isatty())
    started = time.perf_counter()
    try:
        with _writer(log, log_key, trusted) as writer:
            answers = run(
                requests,
                model=loaded,
                signed=signed,
                policy=trusted,
                log=writer,
                now=datetime.now(UTC),
                attention=AttentionSettings(operator, g, window),
                fieldprint_file=fieldprint,
                device=device,
                on_event=progress,
                interrupt=interrupt,
            )
    finally:
        signal.signal(signal.SIGINT, before)
        progress.close()
    seconds = time.perf_counter() - started
    rows = []
    for text, answer in zip(prompt, answers, strict=True):
        path = receipts / f"{answer.result.pages[-1].leaf_hash[:16]}.receipt.json"
        path.write_bytes(answer.receipt.to_bytes())
        result = answer.result
        rows.append(
            {
                "prompt": text,
                "text": result.text,
                "tokens": len(result.tokens),
                "reason": result.reason,
                "receipt": str(path),
            }
        )
    total = sum(len(answer.result.tokens) for answer in answers)
    if as_json:
        _print({"answers": rows, "seconds": seconds, "tokens_per_second": total / seconds}, True, "")
    else:
        for row in rows:
            typer.echo(
                f"> {row['prompt']}\n{_printable(str(row['text']))}\n  [{row['tokens']} tokens, {row['reason']}, {row['receipt']}]"
            )
        typer.echo(
            f"{total} tokens in {seconds:.1f} s ({total / seconds:.1f} tokens/s, prompts included)", err=True
        )
    if interrupt.is_set():
        raise typer.Exit(130)


@app.command()
def verify(
    receipts: Annotated[list[Path], typer.Argument(help="Receipt files.", metavar="RECEIPT...")],
    policy: PolicyFile,
    log: Annotated[Path | None, typer.Option("--log", help="The log, for revocations.")] = None,
    as_json: Json = False,
) -> None:
    """Check receipts offline: with the files and a policy, without model, torch or network.

    Stops at the first that fails. With --log, an anchor that has been revoked since makes its receipts fail check 7.
    """
    from fieldprint.verify import verify_receipt

    trusted = _policy(policy)
    registry = None if log is None else _registry(log, trusted)
    for receipt in receipts:
        try:
            verified = verify_receipt(_read(receipt), trusted, now=datetime.now(UTC), registry=registry)
        except VerificationError as error:
            raise VerificationError(error.check, f"{receipt}: {error.what}", remedy=error.remedy) from error
        name = "no anchor" if verified.anchor is None else f"anchor {verified.anchor.artifact.name}"
        note = "" if log is not None or verified.anchor is None else " (revocation not checked: give --log)"
        _print(
            {
                "verified": True,
                "receipt": str(receipt),
                "text": verified.text,
                "anchor": None if verified.anchor is None else verified.anchor.digest,
                "revocation_checked": log is not None,
                "model": verified.model,
                "leaves": verified.num_leaves,
                "origin": verified.origin,
                "tree_size": verified.tree_size,
            },
            as_json,
            f"verified: {verified.num_tokens} tokens under {name}, {verified.num_leaves} leaves in {verified.origin} "
            f"of {verified.tree_size} entries{note}\n{_printable(verified.text)}",
        )


@app.command("model")
def model_command(
    folder: Annotated[
        Path | None, typer.Argument(help="A model folder; without it the demo model is prepared.")
    ] = None,
) -> None:
    """Check a model folder, or convert the demo model once, and print its path and digest."""
    from fieldprint.adapters.model_folder import check_model_folder, model_digest, prepare_demo_model

    path = prepare_demo_model() if folder is None else folder
    check_model_folder(path)
    typer.echo(f"{path}\n{model_digest(path)}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Where the demo's files go; replaced.")] = Path(
        "demo-out"
    ),
    model: ModelFolder = None,
) -> None:
    """The whole story on a real model: sign, tamper, promote, overflow the window, flip bits, verify, revoke."""
    from fieldprint.demo import run_demo

    summary = run_demo(out, _model(model))
    if not all(summary["checks"].values()):
        raise typer.Exit(1)


class _Progress:
    """A line on the terminal that says how many tokens are provisional and how many are committed."""

    def __init__(self, *, show: bool) -> None:
        self.show = show
        self.started = time.perf_counter()
        self.generated = self.rollbacks = 0
        self.committed: dict[int, int] = {}

    def __call__(self, event: "Event") -> None:
        from fieldprint.generate import Committed, Provisional, RolledBack

        if isinstance(event, Provisional):
            self.generated += 1
        elif isinstance(event, Committed):
            self.committed[event.request] = event.upto
        elif isinstance(event, RolledBack):
            self.rollbacks += 1
        if self.show:
            rate = self.generated / (time.perf_counter() - self.started)
            sys.stderr.write(
                f"\r{self.generated} tokens, {rate:.1f}/s, committed to position "
                f"{', '.join(str(v) for v in self.committed.values()) or 0}, {self.rollbacks} rolled back "
            )
            sys.stderr.flush()

    def close(self) -> None:
        """End the line."""
        if self.show:
            sys.stderr.write("\n")


def _interrupter(interrupt: threading.Event) -> Any:
    def handle(_number: int, _frame: object) -> None:
        if interrupt.is_set():
            raise KeyboardInterrupt
        interrupt.set()
        sys.stderr.write("\nending and committing; press Ctrl-C again to stop at once\n")

    return handle


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"{path} cannot be read: {error.strerror}") from error


def _write_new(path: Path, data: bytes) -> None:
    try:
        with path.open("xb") as file:
            file.write(data)
    except FileExistsError:
        raise typer.BadParameter(f"{path} exists and is not overwritten") from None
    except OSError as error:
        raise FieldprintError(f"{path} cannot be written: {error.strerror}") from error


def _policy(path: Path) -> "Policy":
    from fieldprint.anchor import Policy

    return Policy.from_bytes(_read(path))


def _reader(folder: Path, policy: "Policy") -> Any:
    from fieldprint.tlog import LogReader

    return LogReader(folder, [policy.log_key])


def _registry(folder: Path, policy: "Policy") -> "Registry":
    from fieldprint.registry import Registry

    return Registry.replay(_reader(folder, policy).entries(), policy)


def _writer(folder: Path, log_key: Path, policy: "Policy") -> Any:
    from fieldprint.anchor import load_private_key
    from fieldprint.note import NoteSigner
    from fieldprint.tlog import LogWriter

    signer = NoteSigner(policy.log_key.name, load_private_key(log_key))
    if signer.verifier_key != policy.log_key:
        raise VerificationError(
            2, f"{log_key} is not the log key of the policy", remedy="Give the key of that log"
        )
    return LogWriter(folder, signer)


def _model(folder: Path | None, dtype: str = "float32") -> "LoadedModel":
    from fieldprint.adapters.model_folder import prepare_demo_model

    path = prepare_demo_model() if folder is None else folder
    from fieldprint.adapters.transformers import load_model

    return load_model(path, dtype=dtype)


def _check_device(name: str) -> None:
    if name not in ("cpu", "cuda"):
        raise typer.BadParameter(f"{name!r} is neither cpu nor cuda", param_hint="--device")
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise CapacityError(
            "torch finds no CUDA device", remedy="Install a CUDA build of torch, or leave --device out"
        )


def _entry(entry: bytes) -> dict[str, Any]:
    from fieldprint.anchor.dsse import parse_canonical

    try:
        return parse_canonical(entry, "the entry", 65535)
    except FormatError:
        return {"type": "?"}


def _summary(row: dict[str, Any]) -> str:
    kind = row.get("type")
    part = {name: str(row.get(name))[:16] for name in ("request", "page", "start", "end", "anchor", "model")}
    if kind == "commitment":
        return f"request {part['request']} page {part['page']}, positions {part['start']} to {part['end']}"
    if kind == "abort":
        return f"request {part['request']}: {str(row.get('reason'))[:100]}"
    if kind == "promote":
        return f"anchor {part['anchor']} under model {part['model']}"
    return "a signed revocation" if kind == "revoke" else ""


def _printable(text: str) -> str:
    """`text` with what could steer a terminal replaced by a question mark."""
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)


def _writable_folder(folder: Path) -> None:
    """Fail before the work, not after it, if receipts could not be written."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def _print(fields: dict[str, Any], as_json: bool, text: str) -> None:
    typer.echo(json.dumps(fields, ensure_ascii=False) if as_json else text)


def main() -> None:
    """Run the command line; expected errors are one line and exit code 1, with --json an object on stdout as well."""
    try:
        app()
    except FieldprintError as error:
        sys.exit(_failed(str(error), 1, check=getattr(error, "check", None)))
    except ValueError as error:
        sys.exit(_failed(f"usage: {error}", 2))
    except OSError as error:
        sys.exit(_failed(f"{error.filename or 'output'}: {error.strerror}", 1))
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRAS:
            raise
        what = f"this command needs {error.name}, which the base install leaves out"
        sys.exit(_failed(f"{what}. Run: pip install 'fieldprint[demo]'", 1))


def _failed(text: str, code: int, *, check: int | None = None) -> int:
    typer.echo(f"error: {text}", err=True)
    if "--json" in sys.argv:
        typer.echo(json.dumps({"error": text, "check": check}, ensure_ascii=False))
    return code


if __name__ == "__main__":
    main()
