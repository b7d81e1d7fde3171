"""Make the pictures and questions of this folder from scenes of the task ``digits`` (plugin tokenprune-embedded).

python examples/questions/make.py
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenprune_embedded.tasks.digits import Digits

FOLDER = Path(__file__).parent


def main() -> None:
    """Write five pictures and ten questions."""
    scenes: dict[str, list[dict[str, str]]] = {}
    for sample in Digits(split="test", questions=20, seed=7).samples():
        rows = scenes.setdefault(sample.group, [])
        name = f"{len(scenes)}.png"
        sample.images[0].save(FOLDER / name)
        rows.append({"image": name, "question": sample.question, "answer": sample.answer, "type": sample.type})
    lines = [json.dumps(row) for rows in scenes.values() for row in rows[:2]]
    (FOLDER / "questions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
