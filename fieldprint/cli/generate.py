"""The commands that need a model: `fieldprint promote`, `generate`, `model` and `demo`."""

import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fieldprint.cli.cosigning import open_cosigner, warn
from fieldprint.cli.inputs import open_model, open_policy, open_registry, open_writer, read_input
from fieldprint.cli.options import (
    Floor,
    Json,
    LastSignedFile,
    LogKey,
    LogPlace,
    ModelFolder,
    OperatorName,
    OrdersPlace,
    PolicyFile,
    QuorumFile,
    Window,
)
from fieldprint.cli.output import print_result, printable
from fieldprint.errors import CapacityError

if TYPE_CHECKING:
    from fieldprint.anchor import Policy
    from fieldprint.cli.stream import JsonStream, TerminalStream
    from fieldprint.generate import Event
    from fieldprint.pipeline import Answer
    from fieldprint.registry.watched import WatchedDatabase

DAY = 86_400.0  # seconds


def promote(
    file: Annotated[Path, typer.Argument(help="The signed anchor.")],
    policy: PolicyFile,
    log: LogPlace,
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

    trusted = open_policy(policy)
    loaded = open_model(model)
    registry = open_registry(log, trusted)
    verified = verify_anchor(
        read_input(file), trusted, now=datetime.now(UTC), registry=registry, model=loaded.digest
    )
    pool = PagePool(loaded.decoder.page_layout(16), 64)
    pinned = promote_anchor(
        verified, loaded.decoder, pool, anchor_tokens(loaded, verified), fieldprint_file=fieldprint
    )
    if out is not None:
        pinned.fieldprint.save(out)
    print_result(
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


def generate(
    prompt: Annotated[list[str], typer.Argument(help="User messages; several are one batch.")],
    policy: PolicyFile,
    log: LogPlace,
    log_key: LogKey,
    anchor_file: Annotated[Path | None, typer.Option("--anchor", help="The signed anchor.")] = None,
    model: ModelFolder = None,
    fieldprint: Annotated[
        Path | None, typer.Option("--fieldprint", help="Load this file instead of recomputing.")
    ] = None,
    receipts: Annotated[Path, typer.Option("--receipts", help="Folder for the receipts.")] = Path("receipts"),
    g: Floor = 0.0,
    operator: OperatorName = "floor",
    window: Window = None,
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
    engine: Annotated[
        str, typer.Option("--engine", help="This engine's name, for orders of the scope engine.")
    ] = "engine",
    registry: Annotated[
        str | None,
        typer.Option(
            "--database",
            envvar="FIELDPRINT_REGISTRY",
            help="The registry's database (a file, or PostgreSQL's URL), watched for revocations and overrides; without it the log is asked once, at the beginning.",
        ),
    ] = None,
    grace: Annotated[
        float | None,
        typer.Option(
            "--grace",
            min=0,
            max=DAY,
            help="Seconds to go on while --database cannot be reached; 60, if not given.",
        ),
    ] = None,
    orders: OrdersPlace = None,
    last_signed: LastSignedFile = None,
    quorum: QuorumFile = None,
    stream: Annotated[
        bool,
        typer.Option(
            "--stream",
            help="Show tokens as they come, dim until they are final; with --json one object a line for each event.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Generate under a pinned anchor; every page is committed before it is final. Ctrl-C ends and commits."""
    from fieldprint.generate import AttentionSettings, GenerationRequest, Sampler
    from fieldprint.pipeline import run
    from fieldprint.registry.gate import GRACE
    from fieldprint.registry.orders import OrdersFile

    if grace is not None and registry is None:
        raise typer.BadParameter("--grace belongs to --database, which is what may be out of reach")

    trusted = open_policy(policy)
    signed = None if anchor_file is None else read_input(anchor_file)
    _writable_folder(receipts)
    _check_device(device)
    loaded = open_model(model, dtype)
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
    progress = _observer(stream, as_json, loaded.decode, prompt)
    refused: list[str] = []  # orders of the file, by the log
    left: dict[int, str] = {}  # of each request that went without its anchor, why
    started = time.perf_counter()
    try:
        with (
            open_cosigner(quorum, trusted) as cosigner,
            open_writer(log, log_key, trusted, last_signed, cosign=cosigner) as writer,
            _watched(registry, trusted) as watched,
        ):
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
                on_event=_noting(left, progress),
                interrupt=interrupt,
                name=engine,
                registry=watched,
                orders=None if orders is None else OrdersFile(orders, trusted),
                on_refused=_warning(refused),
                grace=GRACE if grace is None else grace,
            )
    finally:
        signal.signal(signal.SIGINT, before)
        progress.close()
    seconds = time.perf_counter() - started
    rows = []
    for index, (text, answer) in enumerate(zip(prompt, answers, strict=True)):
        tokens = answer.result.all_tokens
        row: dict[str, object] = {
            "prompt": text,
            "text": answer.result.text if answer.before is None else loaded.decode(tokens),
            "tokens": len(tokens),
            "reason": answer.result.reason,
            "receipt": _written(answer, receipts),
        }
        if index in left:
            row["without_anchor"] = left[index]
        if answer.before is not None:
            row |= {"left": answer.before.result.reason, "receipt_before": _written(answer.before, receipts)}
        rows.append(row)
    total = sum(len(answer.result.all_tokens) for answer in answers)
    if as_json:
        report: dict[str, object] = {"event": "report"} if stream else {}
        report |= {"answers": rows, "seconds": seconds, "tokens_per_second": total / seconds}
        warning = "; ".join(filter(None, [*refused, cosigner.shortfall]))
        print_result(report | {"warning": warning or None}, True, "")
    else:
        for row in rows:
            typer.echo(
                f"> {row['prompt']}\n{printable(str(row['text']))}\n  [{row['tokens']} tokens, {row['reason']}, {row['receipt']}]"
            )
            if "without_anchor" in row:
                typer.echo(f"  [without the anchor: {printable(str(row['without_anchor']))}]")
            if "left" in row:
                typer.echo(
                    f"  [{row['left']}: the anchor was left on the way; until then {row['receipt_before']}]"
                )
        typer.echo(
            f"{total} tokens in {seconds:.1f} s ({total / seconds:.1f} tokens/s, prompts included)", err=True
        )
    warn(cosigner.shortfall)
    if interrupt.is_set():
        raise typer.Exit(130)


def _noting(left: dict[int, str], then: "Callable[[Event], None]") -> "Callable[[Event], None]":
    """`then`, after noting in `left` why a request goes without its anchor."""
    from fieldprint.generate import Bypassed

    def note(event: "Event") -> None:
        if isinstance(event, Bypassed):
            left[event.request] = event.reason
        then(event)

    return note


def _warning(said: list[str]) -> Callable[[str], None]:
    """What warns at once, and keeps in `said` what it warned of."""

    def tell(text: str) -> None:
        said.append(text)
        warn(text)

    return tell


@contextmanager
def _watched(url: str | None, policy: "Policy") -> "Iterator[WatchedDatabase | None]":
    if url is None:
        yield None
        return
    from fieldprint.registry.watched import WatchedDatabase

    with WatchedDatabase(url, policy) as watched:
        yield watched


def _written(answer: "Answer", folder: Path) -> str:
    path = folder / f"{answer.result.pages[-1].leaf_hash[:16]}.receipt.json"
    path.write_bytes(answer.receipt.to_bytes())
    return str(path)


def model(
    folder: Annotated[
        Path | None, typer.Argument(help="A model folder; without it the demo model is prepared.")
    ] = None,
) -> None:
    """Check a model folder, or convert the demo model once, and print its path and digest."""
    from fieldprint.adapters.model_folder import check_model_folder, model_digest, prepare_demo_model

    path = prepare_demo_model() if folder is None else folder
    check_model_folder(path)
    typer.echo(f"{path}\n{model_digest(path)}")


def demo(
    out: Annotated[Path, typer.Option("--out", help="Where the demo's files go; replaced.")] = Path(
        "demo-out"
    ),
    model: ModelFolder = None,
) -> None:
    """The whole story on a real model: sign, tamper, promote, overflow the window, flip bits, verify, revoke."""
    from fieldprint.demo import run_demo

    summary = run_demo(out, open_model(model))
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


def _observer(
    stream: bool, as_json: bool, decode: Callable[[Sequence[int]], str], prompts: Sequence[str]
) -> "_Progress | JsonStream | TerminalStream":
    """What is told each event. Into a pipe or file, plain text comes only when it is final."""
    from fieldprint.cli.stream import JsonStream, TerminalStream

    if stream and as_json:
        return JsonStream(decode)
    if stream and sys.stdout.isatty():
        return TerminalStream(decode, prompts)
    return _Progress(show=not as_json and sys.stderr.isatty())


def _interrupter(interrupt: threading.Event) -> Any:
    def handle(_number: int, _frame: object) -> None:
        if interrupt.is_set():
            raise KeyboardInterrupt
        interrupt.set()
        sys.stderr.write("\nending and committing; press Ctrl-C again to stop at once\n")

    return handle


def _check_device(name: str) -> None:
    if name not in ("cpu", "cuda"):
        raise typer.BadParameter(f"{name!r} is neither cpu nor cuda", param_hint="--device")
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise CapacityError(
            "torch finds no CUDA device", remedy="Install a CUDA build of torch, or leave --device out"
        )


def _writable_folder(folder: Path) -> None:
    """Fail before the work, not after it, if receipts could not be written."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass
