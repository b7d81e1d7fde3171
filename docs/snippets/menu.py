"""A hook of mkdocs: the site shows its menu from 1,100 px on, and not from 1,220 px on, as its theme does.

The theme has the width in its style sheets and in its script, and no option for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

#: What the theme has -> what the site has: where the menu is shown, and where it is behind a button.
WIDTHS = {"76.25em": "68.75em", "76.234375em": "68.734375em"}


def on_post_build(config: Any, **kwargs: Any) -> None:
    """Change the files of the theme that were copied into the site."""
    assets = Path(config["site_dir"]) / "assets"
    for file in (*assets.glob("stylesheets/*.css"), *assets.glob("javascripts/bundle.*.js")):
        text = file.read_text(encoding="utf-8")
        for theirs, ours in WIDTHS.items():
            text = text.replace(theirs, ours)
        file.write_text(text, encoding="utf-8")
