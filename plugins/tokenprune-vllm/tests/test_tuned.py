"""What `tokenprune tune` writes is served as it is, and on no other architecture."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import shown
from equality import Reference, answers, close, engine, picture, prompts, seed_of_prompt

from tokenprune import TokenPruneError, load_method
from tokenprune_vllm.twin import twin_of

Find = Callable[[str], Path]


def test_a_tuned_method_is_served(checkpoint: Find, tmp_path: Path) -> None:
    folder, pictures = checkpoint("llava"), tmp_path / "pictures"
    pictures.mkdir()
    for seed in range(4):
        picture(112, 112, seed).save(pictures / f"{seed}.png")
    command = [sys.executable, "-m", "tokenprune.cli", "tune", "--model", str(folder), "--data", str(pictures)]
    command += ["--average-ratio", "0.25", "--method", "divprune", "--method", "mmr", "--output", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    tuned = tmp_path / "tuned.yaml"
    reference, prompt = Reference(folder), prompts(shown("llava"))[0]
    (found,) = answers(engine(folder, settings={"method": tuned}), [(prompt, None)])
    wanted = reference.answer(prompt, {"method": str(tuned)}, [seed_of_prompt(reference, prompt)])
    assert close(wanted, found)
    assert not close(reference.answer(prompt, {"method": "unpruned"}), found)
    other = Reference(checkpoint("qwen2_5_vl")).model.config
    with pytest.raises(TokenPruneError, match=r"was tuned for .*llava"):
        twin_of(other).check(load_method(tuned), 2048)
