"""``tokenprune data``: rows as they are understood."""

from typing import Annotated

import typer

from tokenprune.cli.printing import AsJson, print_json, print_lines
from tokenprune.core.registry import suggest
from tokenprune.errors import ConfigError, SampleError


def data(
    file: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="Questions (a file or dataset), a folder of pictures, a task, or the file of an experiment or tune.",
        ),
    ],
    columns: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ROLE=NAME", help="The column of a role: answer=label, choices=A,B,C; repeat for several."
        ),
    ] = None,
    answer_is: Annotated[
        str | None, typer.Option(help="What answers with choices are: letter, text, index0 or index1.")
    ] = None,
    question: Annotated[str | None, typer.Option(help="The question of rows that have none.")] = None,
    images: Annotated[str | None, typer.Option(help="The folder in which relative paths start.")] = None,
    split: Annotated[str | None, typer.Option(help="The split of a dataset.")] = None,
    config: Annotated[str | None, typer.Option(help="The configuration of a dataset.")] = None,
    rows: Annotated[int, typer.Option(min=0, help="How many rows are shown.")] = 3,
    decode: Annotated[
        bool, typer.Option("--all", help="Decode all pictures, not only those of the rows shown.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the first rows of a file of questions as they are understood, and which rows cannot be used."""
    from tokenprune.cli.as_json import understood_data
    from tokenprune.cli.data_task import chosen_task
    from tokenprune.cli.tables import print_understood
    from tokenprune.tasks.understood import understand

    given = {"answer_is": answer_is, "question": question, "images": images, "split": split, "config": config}
    given = {name: value for name, value in given.items() if value is not None}
    task = chosen_task(file, {**given, **({"columns": roles(columns)} if columns else {})})
    found = understand(task, rows, decode=decode)
    if as_json:
        print_json(understood_data(found))
    else:
        print_understood(found)
    if not found.used:
        reason = f"; the first: {found.left_out[0].example.what}" if found.left_out else ""
        raise SampleError(
            f"none of the {found.count} samples can be used{reason}", "see what is said of each reason above"
        )
    if not decode and not as_json:
        print_lines("--all decodes every picture.")


def roles(given: list[str]) -> dict[str, str | list[str] | None]:
    """The columns of roles, from ``ROLE=NAME``, ``ROLE=NAME,NAME`` or ``ROLE=null``.

    Raises:
        ConfigError: A text has another form, or a role is unknown or stands twice.
    """
    from tokenprune.datasets.columns import ROLES

    found: dict[str, str | list[str] | None] = {}
    for text in given:
        role, equals, name = (part.strip() for part in text.partition("="))
        if not equals or not name or role in found:
            what = f"--columns {role} is given twice" if role in found else f"--columns {text!r} names no column"
            raise ConfigError(what, "write ROLE=NAME once for each role, e.g. answer=label or choices=A,B,C")
        if role not in ROLES:
            raise ConfigError(
                f"--columns: there is no role {role!r}", suggest(role, ROLES).replace("installed", "roles")
            )
        found[role] = None if name == "null" else name.split(",") if "," in name else name
    return found
