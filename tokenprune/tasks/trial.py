"""Whether a task and its metrics can be called as they will be: a wrong signature is found before the first answer."""

import inspect
from collections.abc import Callable
from typing import Any

from tokenprune.core.component_errors import component_errors
from tokenprune.tasks.base import Sample, Task


def try_task(task: Task, sample: Sample) -> None:
    """Check the signatures of a task's rule and of its metrics. Nothing is scored: made-up answers prove nothing.

    Args:
        task: The task.
        sample: One of its samples.

    Raises:
        PluginError: The task or a metric cannot be called; the message names it and its distribution.
    """
    with component_errors("tasks", task, "used_metrics()"):
        metrics = list(task.used_metrics())
    for metric in metrics:
        with component_errors("metrics", metric, "score(text, answers, choices)"):
            _bind(metric.score, "", sample.references, sample.choices)
    with component_errors("tasks", task, "score(sample, text)"):
        _bind(task.score, sample, "")


def _bind(function: Callable[..., Any], *arguments: object) -> None:
    """Raise a TypeError where a function does not take the arguments."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # of a compiled function
        return
    signature.bind(*arguments)
