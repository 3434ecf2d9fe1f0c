"""The demo: the whole story on a real model, every line of it real."""

from fieldprint.demo.story import run_demo

__all__ = ["run_demo"]
