"""The versions of the code that experiments and tunes run beside methods."""

from tokenprune.core.component import Component
from tokenprune.fingerprint.code import code_name, code_version
from tokenprune.models.base import ModelSpec
from tokenprune.tasks.base import Task


def used_code(model: ModelSpec, task: Task) -> dict[str, str | None]:
    """Component in words -> version of its code: the model's, which encodes and decodes, the task's, its metrics'.

    A version is None where it is unknown; see :func:`tokenprune.fingerprint.code.code_version`.
    """
    used: list[tuple[str, Component]] = [("models", model), ("tasks", task)]
    used += [("metrics", metric) for metric in task.used_metrics()]
    return {code_name(kind, type(item)): code_version(kind, type(item)) for kind, item in used}
