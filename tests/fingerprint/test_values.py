"""Inputs of any kind: what differs has another fingerprint, and what is equal has the same one."""

from __future__ import annotations

import threading
from collections import UserDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tokenprune.fingerprint import fingerprint, same
from tokenprune.tasks.base import Video

PIXELS = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


def palette(colour: int) -> Image.Image:
    """A picture whose numbers are all 0: its palette says which colour that is."""
    picture = Image.new("P", (4, 4))
    picture.putpalette([colour] * 768)
    return picture


def changed(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The same with another last number."""
    array = array.copy()
    array.flat[-1] += 1
    return array


DIFFERENT: dict[str, tuple[Any, Any]] = {
    "a number of a tensor": (torch.zeros(3), torch.tensor([0.0, 0, 1e-30])),
    "dtype of a tensor": (torch.zeros(3), torch.zeros(3, dtype=torch.bfloat16)),
    "shape of a tensor": (torch.zeros(2, 3), torch.zeros(3, 2)),
    "shape of an empty tensor": (torch.zeros(0, 3), torch.zeros(0, 2)),
    "a number of an array": (PIXELS, changed(PIXELS)),
    "dtype of an array": (PIXELS, PIXELS.astype(np.int16)),
    "an array or a tensor": (np.zeros(3), torch.zeros(3, dtype=torch.float64)),
    "pixels": (Image.fromarray(PIXELS), Image.fromarray(changed(PIXELS))),
    "mode of a picture": (Image.new("L", (4, 4)), Image.new("P", (4, 4))),
    "palette of a picture": (palette(3), palette(4)),
    "a list of pictures": ([Image.fromarray(PIXELS)], [Image.fromarray(changed(PIXELS))]),
    "a picture in a mapping in a list": (
        {"images": [{"image": Image.fromarray(PIXELS)}]},
        {"images": [{"image": Image.fromarray(changed(PIXELS))}]},
    ),
    "a long array, whose repr is cut": (np.zeros(5000), changed(np.zeros(5000))),
    "objects in an array": (np.array([1, "a"], dtype=object), np.array([1, "b"], dtype=object)),
    "where a text ends": (["ab", "c"], ["a", "bc"]),
    "where a list ends": ([[1], 2], [[1, 2]]),
    "a number and its text": (1, "1"),
    "a number and a truth": (1, True),
    "an integer and a float": (1, 1.0),
    "signs of zero": (0.0, -0.0),
    "nothing and its text": (None, "None"),
    "bytes and a text": (b"a", "a"),
    "a key": ({"a": 1}, {"b": 1}),
    "a key's type": ({1: 1}, {"1": 1}),
    "frames of a video": (Video.at_rate(PIXELS[None], 2.0), Video.at_rate(changed(PIXELS[None]), 2.0)),
    "times of frames": (Video.at_rate(PIXELS[None], 2.0), Video.at_rate(PIXELS[None], 3.0)),
    "a dtype": (torch.float16, torch.bfloat16),
    "surrogates": ("\ud800", "\ud801"),
    "order of a list": ([1, 2], [2, 1]),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_differs_is_noticed(name: str) -> None:
    one, other = map(fingerprint, DIFFERENT[name])
    assert one is not None
    assert other is not None
    assert one != other


def test_what_is_equal_is_equal() -> None:
    numbers = torch.arange(6.0).reshape(2, 3)
    assert fingerprint(numbers) == fingerprint(numbers.clone()) == fingerprint(numbers.T.contiguous().T)
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint(UserDict({"b": (2,), "a": 1}))
    assert fingerprint({"b", "a"}) == fingerprint({"a", "b"})
    assert fingerprint(np.float64(0.5)) == fingerprint(np.float64(0.5))
    assert fingerprint(Image.fromarray(PIXELS)) == fingerprint(Image.fromarray(PIXELS.copy()))
    assert fingerprint(torch.tensor([1 + 2j]).conj()) == fingerprint(torch.tensor([1 - 2j]))


class Hidden(torch.Tensor):
    """A class of tensor that keeps its numbers elsewhere."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("detach", "numpy"):
            raise NotImplementedError("no")
        return super().__torch_function__(func, types, args, kwargs or {})


def circle() -> list[Any]:
    """A list that holds itself."""
    items: list[Any] = []
    items.append(items)
    return items


@pytest.mark.parametrize(
    "value",
    [
        object(),
        threading.Lock(),
        lambda: 1,
        iter([1]),
        torch.empty(3, device="meta"),
        torch.eye(3).to_sparse(),
        torch.zeros(3).as_subclass(Hidden),
        circle(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_read_is_unknown(value: Any) -> None:
    assert fingerprint(value) is None
    assert fingerprint({"a": [1, value]}) is None


def test_a_picture_that_is_cut_off_is_unknown(tmp_path: Path) -> None:
    path = tmp_path / "p.png"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:600])
    assert fingerprint(Image.open(path)) is None


def test_comparing() -> None:
    assert same("2-a", "2-a") is True
    assert same("2-a", "2-b") is False
    for unknown in (None, "", "1-a", "0123456789abcdef01234567"):
        assert same("2-a", unknown) is None
        assert same(unknown, "2-a") is None
    assert same(None, None) is None
    assert same(fingerprint(object()), fingerprint(object())) is None
