"""`python -m fieldprint.cli`."""

from fieldprint.cli.app import main

main()
