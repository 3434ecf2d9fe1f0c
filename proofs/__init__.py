"""Theorems in Coq: `python -m proofs` has them checked (proofs/README.md)."""
