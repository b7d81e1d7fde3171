"""What an installed wheel must do: prune a generation, say so, and leave the model as it was.

``python -I tools/smoke.py docs/snippets/tiny.py`` runs it; the file makes a tiny model and its inputs. ``-I`` keeps the
working directory off the path, so that nothing but the installation is tried.
"""

from __future__ import annotations

import runpy
import sys
from importlib import metadata
from pathlib import Path

import torch

import tokenprune as tp


def main(snippet: str, *plugins: str) -> None:
    """Prune the model of a snippet.

    Args:
        snippet: A Python file whose names ``model`` and ``inputs`` are a small model and what it reads.
        plugins: Distributions that must be here with the core's version, and must register something.
    """
    assert Path(tp.__file__).is_relative_to(sys.prefix), f"not the installed package: {tp.__file__}"
    assert tp.__version__ == metadata.version("tokenprune-mllm")
    for plugin in plugins:
        found = metadata.distribution(plugin)
        assert found.version == tp.__version__, f"{plugin} {found.version}"
        assert found.entry_points, f"{plugin} registers nothing"
        print(f"{plugin} {found.version} registers {', '.join(sorted(point.name for point in found.entry_points))}")
    names = runpy.run_path(snippet)
    model, inputs = names["model"], names["inputs"]
    length = {"max_new_tokens": 4, "do_sample": False}
    before = model.generate(**inputs, **length)
    with tp.apply(model, tp.load_method("fastv", keep_tokens=4)) as run:
        model.generate(**inputs, **length)
    kept, given = run.report.after[0], run.report.before[0]
    assert kept < given, f"{kept} of {given} visual tokens were kept"
    assert torch.equal(before, model.generate(**inputs, **length)), "the model is not as it was"
    print(f"tokenprune {tp.__version__}: fastv kept {kept} of {given} visual tokens, and the model is as it was")


if __name__ == "__main__":
    main(*sys.argv[1:])
