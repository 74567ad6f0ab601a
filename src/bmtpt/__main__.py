"""`python -m bmtpt` is `bmtpt`."""

from bmtpt.cli import main

main()
