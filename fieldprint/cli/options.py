"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
PolicyFile = Annotated[Path, typer.Option("--policy", help="The verifier's policy (TOML).")]
LogFolder = Annotated[Path, typer.Option("--log", help="The log's folder.")]
LogKey = Annotated[Path, typer.Option("--log-key", help="Private key that signs the log's checkpoints.")]
ModelFolder = Annotated[
    Path | None, typer.Option("--model", help="A local model folder; without it the demo model is used.")
]
SigningKeys = Annotated[list[Path], typer.Option("--key", help="Private key that signs; may be repeated.")]
