"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

PASSPHRASE_VARIABLE = "FIELDPRINT_KEY_PASSPHRASE_FILE"  # noqa: S105 - a name, not a secret

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
PolicyFile = Annotated[Path, typer.Option("--policy", help="The verifier's policy (TOML).")]
LogPlace = Annotated[str, typer.Option("--log", help="The log's folder, or the URL of its object store.")]
LogKey = Annotated[Path, typer.Option("--log-key", help="Private key that signs the log's checkpoints.")]
ModelFolder = Annotated[
    Path | None, typer.Option("--model", help="A local model folder; without it the demo model is used.")
]
SigningKeys = Annotated[
    list[str],
    typer.Option(
        "--key",
        help="Key that signs: a file (plain or encrypted), keyring:SERVICE/NAME or a pkcs11: URI; may be repeated.",
    ),
]
PassphraseFile = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file",
        envvar=PASSPHRASE_VARIABLE,
        help="File whose first line is the passphrase of encrypted keys (/dev/fd/3 is a pipe); else it is asked for.",
    ),
]
LastSignedFile = Annotated[
    Path | None,
    typer.Option(
        "--last-signed",
        envvar="FIELDPRINT_LAST_SIGNED",
        help="File that remembers the last signed checkpoint; without it FOLDER.last-signed. Best on another disk.",
    ),
]
QuorumFile = Annotated[
    Path | None,
    typer.Option(
        "--quorum", help="Trust policy (C2SP tlog-policy) whose witnesses are asked to cosign the log."
    ),
]
WitnessTimeout = Annotated[
    float, typer.Option("--timeout", min=0.1, max=3600, help="Seconds to wait for the witnesses.")
]
OrdersPlace = Annotated[
    Path | None,
    typer.Option(
        "--orders",
        envvar="FIELDPRINT_ORDERS",
        help="File of signed overrides and lifts, looked at before every step; see `fieldprint override`.",
    ),
]
StatusFile = Annotated[
    Path | None,
    typer.Option(
        "--status",
        help="Proof that the anchor is not revoked (`registry status --prove`), for who has no log.",
    ),
]
Floor = Annotated[
    float, typer.Option("--g", help="Floor of the anchor's weight, 0 to 1; 0 is plain concatenation.")
]
OperatorName = Annotated[str, typer.Option("--operator", help="floor or mixture.")]
Window = Annotated[int | None, typer.Option("--window", help="Sliding window of the context, in tokens.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and change nothing.")]
Yes = Annotated[
    bool,
    typer.Option("--yes", help="Do not ask before what cannot be undone; needed where there is no terminal."),
]
