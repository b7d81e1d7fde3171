"""The result of an experiment."""

from dataclasses import dataclass, field

from tokenprune.experiment.answers import Answers
from tokenprune.experiment.choosing import Choices
from tokenprune.experiment.results import Results
from tokenprune.output.lines import Row


@dataclass(frozen=True)
class ExperimentResult:
    """A finished experiment.

    Attributes:
        folder: Folder of its files.
        answers: What the tables need of all rows.
        timing: Series key -> prefill time divided by that of the unpruned model, one number per round.
        choices: Series key -> the layers, the reason for the choice, and where a tune made it, what it chose and why.
        skipped: Position of every sample that could not be used -> why.
        left_out: Name of every method that the experiment would have added, and did not -> why.
        label_free: Whether scores are agreement with the unpruned model, because the task has no answers.
        settings: Name of every method with published settings -> for which model, and where they stand.
        remarks: What to know of a result that was read from its folder, e.g. that it is not finished.
    """

    folder: str
    answers: Answers
    timing: dict[str, list[float]] = field(default_factory=dict)
    choices: Choices = field(default_factory=dict)
    skipped: dict[int, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    label_free: bool = False
    settings: dict[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @property
    def rows(self) -> list[Row]:
        """One dictionary per series and sample of this result, read from the folder."""
        keys, positions = self.answers.keys, self.answers.questions.groups
        return [row for row in Results(self.folder).rows() if row["series"] in keys and row["position"] in positions]
