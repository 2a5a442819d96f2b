"""``python -m udpm``."""

from udpm.cli import main

main()
