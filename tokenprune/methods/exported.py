"""A method as a folder for the argument ``custom_generate`` of transformers' ``generate``.

transformers runs ``custom_generate/generate.py`` of a folder, or of a repository on the hub. It copies this file alone
to its own place, so that the method stands in it. It checks ``custom_generate/requirements.txt`` first.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pprint import pformat
from typing import Any

from tokenprune.budgets.label import budget_label, in_words
from tokenprune.config import Method
from tokenprune.core.blame import plugins_installed
from tokenprune.core.component import Component
from tokenprune.core.plugins import DISTRIBUTION
from tokenprune.core.text import write_file
from tokenprune.errors import OutputError
from tokenprune.methods.named import NamedMethod
from tokenprune.version import __version__

#: Tells files of ours from others, in a comment of each.
WRITTEN = "written by `tokenprune export`"

GENERATE = '''\
"""Generate with visual token pruning.

    model.generate(**inputs, custom_generate=FOLDER, trust_remote_code=True)
"""

# {title}, {budget}
# {written}; change the method in its own file and export it again

try:
    import tokenprune
except ImportError as error:
    raise ImportError("this way to generate needs tokenprune: pip install {install}") from error

METHOD = tokenprune.Method.from_dict(
{method},
    "custom_generate/generate.py",
)


def generate(model, **arguments):
    """``model.generate(**arguments)``, pruned by METHOD. Other calls of the model are not affected."""
    return tokenprune.generate(model, METHOD, **arguments)


generate.pruned_by = METHOD  # where a checkpoint carries this file, a method that the caller names counts instead
'''

README = """\
---
library_name: transformers
tags:
- custom_generate
---

<!-- {written} -->

# {title}

Visual token pruning for multimodal models of transformers: {description}

```python
ids = model.generate(**inputs, custom_generate="{folder}", trust_remote_code=True)
```

`custom_generate` is the path of this folder, or the name of the repository that holds its files. The code runs
tokenprune, which has to be installed: `pip install {install}`. All arguments of `generate` can be given.
To have a model prune whenever it generates, put the folder `custom_generate` beside its weights and load it with
`trust_remote_code=True`.

| | |
|---|---|
| method | {title} |
{rows}| budget | {budget} |

The method as YAML, for `tokenprune.load_method`:

```yaml
{yaml}```
"""


@dataclass(frozen=True)
class Exported:
    """A method that is written as a folder.

    Attributes:
        named: The method as it is shipped: its name and what is known of it.
        method: The method itself, with its budget.
    """

    named: NamedMethod
    method: Method

    def write(self, folder: Path) -> list[Path]:
        """Write the folder.

        Args:
            folder: Where to. Files that an earlier export wrote there are replaced.

        Returns:
            The files.

        Raises:
            OutputError: A file of somebody else is there, or one cannot be written.
        """
        files = {
            folder / "custom_generate" / "generate.py": self._generate(),
            folder / "custom_generate" / "requirements.txt": self._requirements(),
            folder / "README.md": self._readme(folder),
        }
        for path in files:
            _check_ours(path)
        for path, text in files.items():
            write_file(path, text)
        return list(files)

    @property
    def _title(self) -> str:
        return " ".join(self.named.title.split())

    @property
    def _budget(self) -> str:
        return in_words(budget_label(self.method.budget))

    @property
    def _needed(self) -> list[str]:
        """Requirements, as transformers reads them: ``name>=version``."""
        owners = plugins_installed()
        modules = {type(part).__module__.partition(".")[0] for part in _components(self.method)}
        plugins = sorted({owners[module] for module in modules if module in owners})
        return [f"{DISTRIBUTION}>={__version__}", *plugins]

    @property
    def _install(self) -> str:
        return " ".join(f"'{one}'" for one in self._needed)

    def _generate(self) -> str:
        data = self.method.model_dump(mode="json", exclude_none=True)
        text = pformat(data, width=100, sort_dicts=False)
        return GENERATE.format(
            title=self._title,
            budget=self._budget,
            written=WRITTEN,
            install=self._install,
            method="\n".join(f"    {line}" for line in text.splitlines()),
        )

    def _requirements(self) -> str:
        return "\n".join([f"# {WRITTEN}", *self._needed]) + "\n"

    def _readme(self, folder: Path) -> str:
        known = {"paper": self.named.paper, "differs from the paper": str(self.named.data.get("differs", ""))}
        rows = [f"| {name} | {' '.join(text.split()).replace('|', '/')} |\n" for name, text in known.items() if text]
        return README.format(
            title=self._title,
            description=self.named.description or self._title,
            written=WRITTEN,
            folder=folder.name,
            install=self._install,
            rows="".join(rows),
            budget=self._budget,
            yaml=self.method.to_yaml(),
        )


def _components(value: Any) -> Iterator[Component]:
    """A component, and all inside it."""
    if isinstance(value, Component):
        yield value
        for name in type(value).model_fields:
            yield from _components(getattr(value, name))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _components(item)


def _check_ours(path: Path) -> None:
    """Refuse to replace what somebody else wrote.

    Raises:
        OutputError: It would be replaced.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else WRITTEN
    except OSError as error:
        raise OutputError(f"cannot read {path} ({error.strerror})", "choose another folder") from None
    if WRITTEN not in text:
        raise OutputError(f"{path} is there, and `tokenprune export` did not write it", "choose another folder")
