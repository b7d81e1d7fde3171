"""What is known to be wrong before anything runs: layers, budgets, needs, and settings of ``generate``."""

from collections.abc import Mapping, Sequence

from tokenprune.errors import TokenPruneError
from tokenprune.experiment.series import Series
from tokenprune.experiment.series_model import SeriesModel, named
from tokenprune.models.answer import check_generation
from tokenprune.run import check_method


def check_series(model: SeriesModel, series: Sequence[Series]) -> set[str]:
    """Check every series against the model, as far as nothing has to run for it.

    Args:
        model: The model.
        series: The series.

    Returns:
        Keys of the series whose layers are known: those of the others are measured.

    Raises:
        ConfigError: The model cannot write with the settings of ``generate``.
        TokenPruneError: Methods cannot run on the model; the message names all of them.
    """
    check_generation(model.loaded)
    known: set[str] = set()
    failed: dict[str, TokenPruneError] = {}
    for item in series:
        try:
            with named(item):
                if item.downsampled is not None:
                    _ = model.downsampler
                    known.add(item.key)
                elif item.method is not None and check_method(model.loaded.model, item.method) is not None:
                    known.add(item.key)
        except TokenPruneError as error:
            failed.setdefault(item.method_name, error)
    raise_first(failed)
    return known


def raise_first(failed: Mapping[str, TokenPruneError]) -> None:
    """Raise the first error of methods, with the names of the others; nothing if there is none.

    Args:
        failed: The errors by the name of the method.
    """
    if not failed:
        return
    first, *_ = failed.values()
    if len(failed) == 1:
        raise first
    others = f"also failed: {', '.join(list(failed)[1:])}"
    raise type(first)(first.what, f"{first.fix}; {others}" if first.fix else others) from first
