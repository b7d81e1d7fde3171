"""The clock waits for whatever accelerator it measures, and never for the host alone."""

from __future__ import annotations

import time

import pytest
import torch

from tokenprune.core.clock import Moment, environment, timed

CPU = torch.device("cpu")


def test_a_call_is_timed_in_milliseconds() -> None:
    result, taken = timed(CPU, lambda: time.sleep(0.02) or "done")
    assert result == "done"
    assert 20 <= taken < 2000


@pytest.mark.parametrize("kind", ["mps", "xpu"])
def test_an_accelerator_without_events_is_waited_for(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr("torch.accelerator.synchronize", lambda device: order.append(f"wait for {device.type}"))
    timed(torch.device(kind), lambda: order.append("call"))
    assert order == [f"wait for {kind}", "call", f"wait for {kind}"]


def test_a_moment_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.accelerator.synchronize", lambda device: pytest.fail("it waits"))
    start = Moment(torch.device("mps"))
    assert Moment(torch.device("mps")).since(start) >= 0


def test_on_cuda_both_moments_are_events_of_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            order.append("record")

        def synchronize(self) -> None:
            order.append("synchronize")

        def elapsed_time(self, end: Event) -> float:
            return 7.0

    monkeypatch.setattr("torch.cuda.Event", Event)
    monkeypatch.setattr("torch.accelerator.synchronize", lambda device: order.append("wait"))
    assert timed(torch.device("cuda"), lambda: order.append("call")) == (None, 7.0)
    assert order == ["wait", "record", "call", "record", "synchronize"]


def test_the_environment_names_versions_and_the_machine() -> None:
    found = environment(CPU)
    assert found["torch"] == torch.__version__
    assert found["device_type"] == "cpu"
    assert found["device"]
    assert "cuda" not in found
