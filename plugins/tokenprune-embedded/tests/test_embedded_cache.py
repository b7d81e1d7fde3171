"""The cache folder: a checkpoint is put together once, whoever else is at work."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from transformers import LlavaForConditionalGeneration

from tokenprune.authoring import MissingDataError, TokenPruneWarning
from tokenprune_embedded import cache
from tokenprune_embedded.cache import checkpoint_folder, create_once
from tokenprune_embedded.checkpoint import CLIPS


def write(folder: Path) -> None:
    """Some content."""
    (folder / "one").write_text("1")
    (folder / "two").write_text("2")


def content(folder: Path) -> dict[str, str]:
    """What `write` wrote."""
    return {file.name: file.read_text() for file in folder.iterdir()}


@pytest.mark.slow
def test_the_checkpoint_is_made_once(tmp_path: Path) -> None:
    try:
        folder = checkpoint_folder(CLIPS, tmp_path)
    except MissingDataError as error:
        pytest.skip(str(error))
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert checkpoint_folder(CLIPS, tmp_path) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert len(LlavaForConditionalGeneration.from_pretrained(folder).get_decoder().layers) == 8


def test_a_cache_folder_that_cannot_be_written_is_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint is then in a folder of this process, and made there once."""
    made: list[Path] = []

    def assemble(build: object, folder: Path) -> None:
        made.append(folder)
        write(folder)

    monkeypatch.setattr(cache, "fingerprint", lambda build: "0")
    monkeypatch.setattr(cache, "assemble", assemble)
    place = tmp_path / "file" / "cache"
    (tmp_path / "file").write_text("not a folder")
    with pytest.warns(TokenPruneWarning, match=r"file/cache cannot be used \(Not a directory\)") as caught:
        folders = [checkpoint_folder(CLIPS, place) for _ in range(2)]
    assert len(caught) == 1
    assert len(made) == 1
    assert folders[0] == folders[1]
    assert content(folders[0]) == {"one": "1", "two": "2"}


def test_a_missing_part_is_no_matter_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(build: object, folder: Path) -> None:
        raise MissingDataError("no wheel")

    monkeypatch.setattr(cache, "fingerprint", lambda build: "0")
    monkeypatch.setattr(cache, "assemble", missing)
    with pytest.raises(MissingDataError, match="no wheel"):
        checkpoint_folder(CLIPS, tmp_path)


def test_two_at_once_end_with_one_whole_folder(tmp_path: Path) -> None:
    """Both are writing when the first is done: neither fails, and nothing is left of the second."""
    both = Barrier(2, timeout=60)

    def slow(folder: Path) -> None:
        both.wait()
        write(folder)
        both.wait()

    target = tmp_path / "cache" / "model"
    with ThreadPoolExecutor(2) as pool:
        for job in [pool.submit(create_once, target, slow) for _ in range(2)]:
            job.result()
    assert content(target) == {"one": "1", "two": "2"}
    assert list(target.parent.iterdir()) == [target]


def test_nobody_sees_a_folder_that_is_not_whole(tmp_path: Path) -> None:
    target = tmp_path / "model"

    def look(folder: Path) -> None:
        (folder / "one").write_text("1")
        assert not target.exists()
        (folder / "two").write_text("2")

    create_once(target, look)
    assert content(target) == {"one": "1", "two": "2"}


def test_what_another_process_is_writing_is_left_alone(tmp_path: Path) -> None:
    theirs = tmp_path / "model-x.partial"
    theirs.mkdir()
    (theirs / "one").write_text("theirs")
    create_once(tmp_path / "model", write)
    assert content(theirs) == {"one": "theirs"}
    assert content(tmp_path / "model") == {"one": "1", "two": "2"}


@pytest.mark.parametrize("where", ["model", "deeper/model"])
def test_a_failure_leaves_nothing(tmp_path: Path, where: str) -> None:
    def fail(folder: Path) -> None:
        write(folder)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        create_once(tmp_path / where, fail)
    assert not list((tmp_path / where).parent.iterdir())


def test_a_folder_that_is_there_is_not_written_again(tmp_path: Path) -> None:
    calls: list[Path] = []
    record: Callable[[Path], None] = calls.append
    create_once(tmp_path / "model", write)
    create_once(tmp_path / "model", record)
    assert not calls
