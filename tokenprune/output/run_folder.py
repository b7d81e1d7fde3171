"""The folder of one experiment or tune: which further runs may go on in it, and who claims it."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar

import yaml

from tokenprune.errors import OutputError
from tokenprune.fingerprint.definition import what_differs
from tokenprune.fingerprint.origin import ORIGIN, Origin
from tokenprune.output.folder import CONFIG, OutputFolder

#: The way out of a folder that holds something else.
ANOTHER_FOLDER = "choose another output folder, or delete that one"


class RunFolder(OutputFolder):
    """The files of one experiment or tune; arguments and errors as for :class:`OutputFolder`.

    Attributes:
        definitions: The file that says what every name in the rows stands for.
    """

    definitions: ClassVar[str]

    @property
    def unordered(self) -> Path:
        """A file that is there while rows stand in the order in which workers were done."""
        return self.folder / ".unordered"

    def begin_unordered(self) -> None:
        """Note that several workers write rows."""
        self.write(self.unordered.name, "")

    @property
    def claimed(self) -> bool:
        """Whether the folder belongs to a run."""
        return (self.folder / CONFIG).is_file()

    def check_settings(self, settings: Mapping[str, Any], free: Collection[str]) -> None:
        """Check that a run with these settings may go on in the folder.

        Args:
            settings: All settings of the run that are not null, JSON-ready.
            free: Names of the settings that may differ.

        Raises:
            OutputError: The folder holds results with other settings, the first of which is named, or its
                configuration is damaged.
        """
        if not self.claimed:
            return
        stored = self.config()
        if not stored:
            raise OutputError(
                f"{self.folder / CONFIG} is damaged, so it is unknown what the results in its folder belong to",
                f"repair the file, {ANOTHER_FOLDER}",
            )
        old, new = ({key: value for key, value in data.items() if key not in free} for data in (stored, settings))
        found = _difference(old, new)
        if found is not None:
            what = f"({found[0]}: {found[1]!r} there, {found[2]!r} now)"
            raise OutputError(f"{self.folder} holds results with other settings {what}", ANOTHER_FOLDER)

    def check_definitions(self, definitions: Mapping[str, Any]) -> dict[str, Any]:
        """Check that names in the rows still stand for the same.

        Args:
            definitions: All fields and the versions of code behind every name, JSON-ready.

        Returns:
            The definitions that the folder knows.

        Raises:
            OutputError: A name stood for something else when the folder was written.
        """
        known = self.read_mapping(self.definitions)
        for name, definition in definitions.items():
            what = what_differs(known.get(name, definition), definition)
            if what is not None:
                raise OutputError(
                    f"{self.folder} holds results of {name!r} with {what}", f"give it another label, {ANOTHER_FOLDER}"
                )
        return known

    def add_definitions(self, definitions: Mapping[str, Any]) -> None:
        """Write definitions that were checked. Those that are there stay: older rows do not learn of code later."""
        known = self.check_definitions(definitions)
        if not definitions.keys() <= known.keys():
            self.write_json(self.definitions, {**known, **definitions, **known})

    def check_code(self, code: Mapping[str, str | None]) -> None:
        """Check that the code of model, task and metrics is that which the results were made with, as far as known.

        Raises:
            OutputError: It is not.
        """
        if self.claimed:
            Origin.read(self.read_json(ORIGIN)).refuse(Origin(code=code), self.folder)

    def check_origin(self, origin: Origin) -> None:
        """Check the model's weights and the code; see :meth:`Origin.check`. A new folder has nothing to compare."""
        if self.claimed:
            origin.check(self.folder, self.read_json(ORIGIN))

    def claim(self, settings: Mapping[str, Any], origin: Origin, definitions: Mapping[str, Any]) -> None:
        """Reserve the folder for settings, an origin and definitions that were accepted.

        The origin is written once: what was unknown of the first results does not become known by later ones.
        """
        if not self.claimed:
            origin.announce(self.folder)
            self.write_json(ORIGIN, origin.stored())
        self.add_definitions(definitions)
        self.write(CONFIG, yaml.safe_dump(dict(settings), sort_keys=False))


def _difference(old: Any, new: Any, path: str = "") -> tuple[str, Any, Any] | None:
    """The path of the first value that differs in two settings, and the value in both; None where none does."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return None if old == new else (path, old, new)
    for key in [*old, *(key for key in new if key not in old)]:
        found = _difference(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))
        if found is not None:
            return found
    return None
