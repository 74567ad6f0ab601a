"""The `bmtpt` command. It computes nothing: options to settings, one library call, what was written."""

from bmtpt.cli.main import main

__all__ = ["main"]
