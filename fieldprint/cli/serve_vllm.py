"""`fieldprint serve`: vLLM's server under verified anchors."""

import re
from pathlib import Path
from typing import Annotated

import typer

from fieldprint.cli.inputs import open_policy, open_registry, open_writer, read_input
from fieldprint.cli.options import (
    Floor,
    LastSignedFile,
    LogKey,
    LogPlace,
    OperatorName,
    OrdersPlace,
    PolicyFile,
    Window,
)
from fieldprint.errors import FieldprintError

NAMED = re.compile(r"([A-Za-z0-9_.-]{1,64})=(.+)", re.DOTALL)
MAIN = "main"
NONE = "none"


def serve(
    context: typer.Context,
    policy: PolicyFile,
    log: LogPlace,
    log_key: LogKey,
    model: Annotated[
        str | None,
        typer.Argument(help="A local model folder, before any of vLLM's arguments; else the demo model."),
    ] = None,
    anchor: Annotated[
        list[str] | None,
        typer.Option("--anchor", help="A signed anchor: FILE, whose name is main, or NAME=FILE; repeatable."),
    ] = None,
    fieldprint: Annotated[
        list[str] | None,
        typer.Option("--fieldprint", help="Its fieldprint, FILE or NAME=FILE; else it is computed once."),
    ] = None,
    default: Annotated[
        str | None,
        typer.Option("--default", help="Anchor of requests that name none; else the first. none: without."),
    ] = None,
    receipts: Annotated[Path, typer.Option("--receipts", help="Folder for the receipts.")] = Path("receipts"),
    database: Annotated[
        str | None,
        typer.Option(
            "--database",
            envvar="FIELDPRINT_REGISTRY",
            help="The registry's database, watched for revocations and overrides.",
        ),
    ] = None,
    orders: OrdersPlace = None,
    engine: Annotated[
        str, typer.Option("--engine", help="This engine's name, for orders of the scope engine.")
    ] = "engine",
    control: Annotated[
        Path, typer.Option("--control", help="Folder by which the running engine is told of events.")
    ] = Path("control"),
    admin_token_file: Annotated[
        Path | None,
        typer.Option(
            "--admin-token-file",
            help="Take events and anchors over HTTP from who bears the token in this file (0600).",
        ),
    ] = None,
    last_signed: LastSignedFile = None,
    kernel: Annotated[
        str | None,
        typer.Option(
            "--kernel",
            help="vllm: its own, anchor and context in one softmax. paged: ours, chosen where an option below needs it.",
        ),
    ] = None,
    g: Floor = 0.0,
    operator: OperatorName = "floor",
    window: Window = None,
    num_sinks: Annotated[
        int, typer.Option("--num-sinks", help="First tokens of the context that stay in sight.")
    ] = 0,
    mass: Annotated[
        bool, typer.Option("--mass", help="Sum the attention that each anchor gets, by layer and head.")
    ] = False,
) -> None:
    """Serve a model with vLLM's OpenAI-compatible server under verified anchors, with receipts. Ctrl-C ends it.

    All other arguments are vLLM's own (`vllm serve --help=all`), such as --host, --port, --api-key, --max-model-len. Needs
    the extra vllm.
    """
    from fieldprint.adapters.vllm.serve import check_environment, parse_arguments, run_server, with_fieldprint
    from fieldprint.adapters.vllm.settings import ServeSettings, kernel_for

    rest = list(context.args)
    if model is not None and model.startswith("-"):
        rest.insert(0, model)
        model = None
    check_environment()
    chosen_kernel = kernel_for(kernel, operator=operator, g=g, window=window, num_sinks=num_sinks, mass=mass)
    artifacts, given = _named(anchor or [], "--anchor"), _named(fieldprint or [], "--fieldprint")
    if unknown := given.keys() - artifacts.keys():
        raise typer.BadParameter(
            f"--fieldprint names {', '.join(sorted(unknown))}, of which there is no anchor"
        )
    chosen = _default(default, artifacts)
    admin = None if admin_token_file is None else _checked_token(admin_token_file)
    trusted = open_policy(policy)
    with open_writer(log, log_key, trusted, last_signed):
        pass  # it is there, and it is ours; the engine opens it again
    from fieldprint.adapters.model_folder import model_digest, prepare_demo_model
    from fieldprint.adapters.vllm.prepare import FieldprintFiles, anchor_files, verified_anchors

    folder = prepare_demo_model(progress=_say) if model is None else Path(model)
    signed = {name: read_input(path) for name, path in artifacts.items()}
    verified = verified_anchors(signed, trusted, open_registry(log, trusted), model_digest(folder))
    _prepare_folders(receipts, control)
    args = parse_arguments(rest)
    files = anchor_files(artifacts, given, verified, FieldprintFiles(folder, _say))
    settings = ServeSettings(
        policy=str(policy.absolute()),
        model=str(folder.absolute()),
        log=log if "://" in log else str(Path(log).absolute()),
        log_key=str(log_key.absolute()),
        receipts=str(receipts.absolute()),
        anchors=files,
        default=chosen,
        database=database,
        orders=None if orders is None else str(orders.absolute()),
        control=str(control.absolute()),
        admin_token=admin,
        last_signed=None if last_signed is None else str(last_signed.absolute()),
        engine=engine,
        kernel=chosen_kernel,
        operator=operator,
        g=g,
        window=window,
        num_sinks=num_sinks,
        mass=mass,
    )
    _say(f"serving {folder} under {', '.join(files) or 'no anchor'}; vLLM starts")
    run_server(with_fieldprint(args, settings))


def _named(values: list[str], option: str) -> dict[str, Path]:
    """Files by name; one without is `main`."""
    files: dict[str, Path] = {}
    for value in values:
        match = NAMED.fullmatch(value)
        name, file = (match[1], match[2]) if match else (MAIN, value)
        if name in files or name == NONE:
            raise typer.BadParameter(
                f"{option} {value}: {name} stands for no anchor"
                if name == NONE
                else f"{option} names {name} twice; give NAME=FILE"
            )
        if not Path(file).is_file():
            raise typer.BadParameter(f"{option}: {file} is no file")
        files[name] = Path(file)
    return files


def _default(name: str | None, artifacts: dict[str, Path]) -> str | None:
    if name == NONE:
        return None
    if name is None:
        return next(iter(artifacts), None)
    if name not in artifacts:
        raise typer.BadParameter(f"--default {name} is none of {', '.join(artifacts) or 'no anchors'}")
    return name


def _checked_token(path: Path) -> str:
    from fieldprint.tlog.serve import token_in

    token_in(path, read_input(path))
    return str(path.absolute())


def _prepare_folders(receipts: Path, control: Path) -> None:
    from fieldprint.adapters.vllm.ask import RunningEngine

    try:
        receipts.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise FieldprintError(
            f"{receipts} cannot be made: {error.strerror}", remedy="Give --receipts"
        ) from error
    RunningEngine(control).prepare()


def _say(line: str) -> None:
    typer.echo(line, err=True)
