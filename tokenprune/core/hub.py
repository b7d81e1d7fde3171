"""The Hugging Face hub is asked once, briefly, before its client starts to download and to try again for minutes."""

from typing import Literal

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented, not in __all__

from tokenprune.core.text import one_line

Kind = Literal["model", "dataset"]
#: Seconds that the hub has to answer.
TIMEOUT = 5.0


class NotOnHubError(LookupError):
    """The hub answered that it does not have what was asked for; the message says which part."""


def is_hub_name(name: str) -> bool:
    """Whether a text can be a name on the hub: ``name`` or ``owner/name``. Anything else can only be a path."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def ask_hub(name: str, kind: Kind, revision: str | None = None) -> str | None:
    """Ask the hub whether it has a model or a dataset.

    Args:
        name: Its name; see :func:`is_hub_name`.
        kind: What it is.
        revision: Branch, tag or commit; None for the default branch.

    Returns:
        None if the hub has it; why the hub cannot be asked if it cannot.

    Raises:
        NotOnHubError: The hub does not have it, or does not show it to this user.
    """
    api = HfApi()
    try:
        if kind == "model":
            api.model_info(name, revision=revision, timeout=TIMEOUT)
        else:
            api.dataset_info(name, revision=revision, timeout=TIMEOUT)
    except GatedRepoError:
        return None  # it is there; the download says how to get access
    except RepositoryNotFoundError:
        raise NotOnHubError(f"the hub has no {kind} {name!r} that you can read") from None
    except RevisionNotFoundError:
        raise NotOnHubError(f"the {kind} {name!r} on the hub has no revision {revision!r}") from None
    except OfflineModeIsEnabled:
        return "HF_HUB_OFFLINE is set"
    except Exception as error:  # the HTTP library of the hub's client changes with its version
        return f"{constants.ENDPOINT} did not answer: {one_line(error)}"
    return None
