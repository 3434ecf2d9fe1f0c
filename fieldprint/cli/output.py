"""What commands print."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from fieldprint.anchor import Override


def print_result(fields: dict[str, Any], as_json: bool, text: str) -> None:
    """Print one JSON object, or the text."""
    typer.echo(json.dumps(fields, ensure_ascii=False) if as_json else text)


def printable(text: str) -> str:
    """`text` with what could steer a terminal replaced by a question mark."""
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)


def order_words(order: "Override") -> str:
    """An override as words: freeze kind identity, number 7, until 2026-11-24T09:00:00Z: it leaks."""
    from fieldprint.anchor.artifact import format_time

    until = "restored" if order.expires is None else format_time(order.expires)
    on = "everything" if order.scope == "all" else f"{order.scope} {order.target}"
    return f"{order.action} {on}, number {order.number}, until {until}: {order.reason}"


def unchecked(status: object | None) -> str:
    """What was not checked of an anchor without the log: with a status proof, less."""
    what = "revocation" if status is None else "ancestors, supersession and overrides"
    return f" ({what} not checked: give --log)"


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; what is in the cells is no markup and steers no terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title)
    for column in columns:
        # Folded, not cut: a digest that ends in dots cannot be copied.
        table.add_column(column, no_wrap=column in ("cosine", "id", "what", "anchor"), overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    Console().print(table)


@contextmanager
def progress_bar(what: str, total: int, as_json: bool) -> Iterator[Callable[[int], object]]:
    """A function that is told how many are done, and shows it where standard error is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    shown = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*shown, console=console, disable=as_json or not console.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)
