"""The verification protocol as a model for Spin: `python -m protocol` checks it and its mutants (docs/protocol.md)."""
