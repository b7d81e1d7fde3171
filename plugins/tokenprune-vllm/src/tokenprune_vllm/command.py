"""``tokenprune-vllm``: prints the command that starts a server with pruning."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence

from tokenprune import TokenPruneError, list_methods
from tokenprune_vllm.overrides import overrides
from tokenprune_vllm.servable import why_not


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 2 if the settings are wrong."""
    parser = argparse.ArgumentParser(prog="tokenprune-vllm", description=__doc__)
    parser.add_argument("checkpoint", nargs="?", help="a folder, or a name on the hub; without one, methods are listed")
    parser.add_argument("--method", help="an installed method, a method's YAML file, a tuned.yaml, or unpruned")
    parser.add_argument("--ratio", type=float, help="share of the visual tokens of each picture or video that is kept")
    parser.add_argument("--tokens", type=int, help="visual tokens of each picture or video that are kept")
    parser.add_argument("--positions", choices=["original", "renumbered"])
    parser.add_argument("--requests", choices=["nothing", "budget", "method"], default="method")
    parser.add_argument("--methods", nargs="+", help="the methods that a request may name; all by default")
    given = parser.parse_args(arguments)
    if given.checkpoint is None:
        return _list()
    if given.method is None:
        parser.error("--method is missing: name one, or run tokenprune-vllm alone to list them")
    options = vars(given).copy()
    checkpoint = options.pop("checkpoint")
    try:
        made = overrides(checkpoint, **options)
    except TokenPruneError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    command = ["python", "-m", "vllm.entrypoints.openai.api_server", "--model", checkpoint]
    command += ["--hf-overrides", json.dumps(made)]
    command += [] if given.requests == "nothing" else ["--trust-request-mm-kwargs"]
    print(shlex.join(command))
    return 0


def _list() -> int:
    """Print every method, and why those that cannot be served cannot."""
    for method in list_methods():
        if method.problem is None:
            made = method.method(keep_ratio=0.5)
            served = "can be served" + (", for prompts of one video" if made.pruner.across_images else "")
            print(f"{method.name}: {why_not(made) or served}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
