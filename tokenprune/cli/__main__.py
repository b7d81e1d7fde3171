"""``python -m tokenprune.cli``."""

from __future__ import annotations

from tokenprune.cli.commands import main

main()
