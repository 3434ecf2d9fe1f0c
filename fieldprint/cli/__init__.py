"""The command line: one command per stage, --json for machines, exit codes 0 (done), 1 (a check failed), 2 (usage).

A file holds one group of commands, `generate.py` those that need a model; `options.py` has the options that several
share, `inputs.py` opens what they name, `output.py` prints.
"""

from fieldprint.cli.app import app, main

__all__ = ["app", "main"]
