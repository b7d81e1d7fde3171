"""``python -m tokenprune.cli``."""

from tokenprune.cli.commands import main

main()
