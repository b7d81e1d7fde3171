"""How the command line shows warnings of ours, and those of others."""

from __future__ import annotations

import warnings

import pytest

from tokenprune.cli.failures import warnings_reported
from tokenprune.errors import TokenPruneWarning
from tokenprune.report.extra import NotWrittenWarning


@pytest.mark.parametrize("kind", [TokenPruneWarning, NotWrittenWarning])
def test_a_warning_of_ours_is_one_line_once(capsys: pytest.CaptureFixture[str], kind: type[Warning]) -> None:
    with warnings_reported():
        for _ in range(2):
            warnings.warn("the folder\ncannot be used", kind, stacklevel=1)
        warnings.warn("another one", kind, stacklevel=1)
    assert capsys.readouterr().err == "the folder cannot be used\nanother one\n"


def test_warnings_of_others_are_shown_as_ever() -> None:
    with pytest.warns(UserWarning, match="of a library"), warnings_reported():
        warnings.warn("of a library", UserWarning, stacklevel=1)
