"""What commands print."""

import json
from typing import Any

import typer


def print_result(fields: dict[str, Any], as_json: bool, text: str) -> None:
    """Print one JSON object, or the text."""
    typer.echo(json.dumps(fields, ensure_ascii=False) if as_json else text)


def printable(text: str) -> str:
    """`text` with what could steer a terminal replaced by a question mark."""
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)
