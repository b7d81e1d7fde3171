"""The command: an error ends it with an exit code, the report stands beside the results, caches keep methods apart."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from evaluation import FASTV, RANDOM, arguments, command, text
from local_tasks import COUNT, LocalTasks

from tokenprune import TokenPruneError
from tokenprune_lmms_eval.model import TokenPrune

Find = Callable[[str], Path]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tasks: LocalTasks) -> Run:
    """``run(task, model_args, *options)``: the command in this process: exit code, stdout, stderr."""
    from lmms_eval.cli import dispatch

    def start(names: str, given: dict[str, Any] | str, *options: str) -> tuple[int, str, str]:
        words = ["--model", "tokenprune", "--model_args", given if isinstance(given, str) else text(given)]
        words += ["--tasks", names, "--include_path", str(tasks.folder), "--batch_size", "2", *options]
        monkeypatch.setattr(sys, "argv", ["lmms-eval", *words])
        try:
            dispatch.main()
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return start


def error_line(stderr: str) -> str:
    """The last line that begins with ``error:``."""
    return [line for line in stderr.splitlines() if line.startswith("error:")][-1]


def written(folder: Path, ending: str) -> list[Path]:
    return sorted(folder.rglob(f"*{ending}"))


def test_two_tasks_their_results_and_the_report(checkpoint: Find, tasks: LocalTasks, tmp_path: Path) -> None:
    """In a process of its own, with `--limit`."""
    names = f"{tasks.pictures()},{tasks.texts()}"
    given = arguments(checkpoint("llava"), method="divprune", keep_ratio=0.25)
    options = ["--include_path", str(tasks.folder), "--output_path", str(tmp_path / "out"), "--log_samples"]
    done = command("--model_args", text(given), "--tasks", names, "--batch_size", "2", "--limit", "3", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    (results,) = written(tmp_path / "out", "_results.json")
    (report,) = written(tmp_path / "out", "_tokenprune_report.json")
    assert results.parent == report.parent
    shown = json.loads(report.read_text(encoding="utf-8"))
    assert (shown["method_name"], shown["layers"], shown["method"]["budget"]["ratio"]) == ("divprune", [0], 0.25)
    assert shown["model_args"]["keep_ratio"] == 0.25
    pictures, texts = shown["tasks"]["tp_pictures"], shown["tasks"]["tp_texts"]
    assert (pictures["requests"], pictures["without_visual_tokens"], texts["without_visual_tokens"]) == (3, 0, 3)
    assert (pictures["average"]["visual_before"], pictures["average"]["visual_after"]) == (16, 4)
    assert pictures["average"]["flops"] < pictures["average"]["flops_unpruned"]
    assert pictures["generation"] == [{"max_new_tokens": 3, "until": ["\n\n"]}]
    found = json.loads(results.read_text(encoding="utf-8"))
    assert set(found["results"]) == {"tp_pictures", "tp_texts"}
    assert (found["throughput"]["avg_visual_before"], found["throughput"]["avg_visual_after"]) == (8, 2)
    samples = [json.loads(line) for line in written(tmp_path / "out", "_samples_tp_pictures.jsonl")[0].open()]
    assert [sample["token_counts"][0]["visual_after"] for sample in samples] == [4, 4, 4]


def test_an_error_is_an_exit_code(checkpoint: Find, tasks: LocalTasks) -> None:
    """In a process of its own: lmms-eval swallows exceptions and ends with 0. The method needs two frames."""
    given = arguments(checkpoint("llava"), method="evs", keep_ratio=0.5)
    done = command("--model_args", text(given), "--tasks", tasks.pictures(), "--include_path", str(tasks.folder))
    assert done.returncode == 1
    assert "method 'evs' on sample 'tp_pictures, document 0'" in error_line(done.stderr)
    assert "no two frames" in error_line(done.stderr)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"methd": "fastv"}, "unknown name 'methd'; did you mean 'method'? allowed are"),
        ({"keep_ration": 0.5}, "did you mean 'keep_ratio'?"),
        ({"tokens": 8}, "tokens=8 does not say what it counts; write average_tokens=8"),
        ({"layer_average": 8}, "layer_average=8 is the name of a budget; give one of average_tokens"),
        ({"method": "fastvv"}, "unknown method 'fastvv'; did you mean 'fastv'"),
        ({"method": "none.yaml"}, "none.yaml"),
        ({"method": None}, "model_args: no method; give method=NAME"),
        ({"keep_ratio": 1.5}, "budget.ratio: Input should be less than or equal to 1, got 1.5"),
        ({"keep_ratio": 0.5, "average_ratio": 0.5}, "several budgets (average_ratio, keep_ratio): give one"),
        ({"pretrained": "nowhere/at-all/here"}, "checkpoint 'nowhere/at-all/here' cannot be loaded"),
        ({"model": "digits"}, "give pretrained (a checkpoint) or model"),
        ({"dtype": "float12"}, "dtype"),
        ({"calibration": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"method": "unpruned", "keep_ratio": 0.5}, "method=unpruned prunes nothing: leave out keep_ratio"),
        ({"method": "downsampled"}, "give a budget"),
        ({"generation": "{num_beams: 2}"}, "generation belongs to experiments"),
        ({"published": "LLaVA-99B"}, "has no settings that were published for"),
        ({"seed": 3}, "uses no random numbers"),
        ({"batch_size": "auto"}, "batch_size=auto is not supported"),
        ({"errors": "hide"}, "'stop' or 'name'"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], message: str, checkpoint: Find) -> None:
    """One line, which says what is allowed."""
    given = arguments(checkpoint("llava"), method="divprune") | change
    words = text({key: value for key, value in given.items() if value is not None})
    with pytest.raises(TokenPruneError) as error:
        TokenPrune.create_from_arg_string(words, {"batch_size": "1"})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_wrong_argument_is_an_exit_code(checkpoint: Find, tasks: LocalTasks, run: Run) -> None:
    """Nothing is evaluated."""
    code, out, err = run(tasks.pictures(), arguments(checkpoint("llava"), method="divprune", keep_ration=0.5))
    assert (code, "Running generate_until" in out) == (1, False)
    assert "unknown name 'keep_ration'; did you mean 'keep_ratio'?" in error_line(err)


def test_options_of_the_command_and_arguments_that_say_otherwise(checkpoint: Find) -> None:
    given = text(arguments(checkpoint("llava"), method="divprune", batch_size=3))
    with pytest.raises(TokenPruneError, match="--batch_size 2 and batch_size=3 in --model_args; give one of them"):
        TokenPrune.create_from_arg_string(given, {"batch_size": "2"})


def test_arguments_that_are_no_arguments(tasks: LocalTasks, run: Run) -> None:
    code, _, err = run(tasks.pictures(), "method")
    assert code == 1
    assert "model_args 'method' is not understood; write name=value" in error_line(err)


@pytest.mark.parametrize("options", [["--apply_chat_template"], ["--system_instruction", "be brief"]])
def test_options_that_a_chat_model_would_not_see(
    options: list[str], checkpoint: Find, tasks: LocalTasks, run: Run
) -> None:
    given = arguments(checkpoint("llava"), method="divprune", keep_ratio=0.5)
    code, _, err = run(tasks.pictures(), given, *options)
    assert code == 1
    assert error_line(err).startswith(f"error: {options[0]}: ")


def broken(tasks: LocalTasks) -> str:
    """A task whose third picture is none."""
    rows = tasks.rows()
    rows[2]["image"]["bytes"] = b"no picture"
    return tasks.add("tp_broken", rows, doc_to_visual="utils.pictures")


def test_a_broken_picture_stops_the_run(checkpoint: Find, tasks: LocalTasks, run: Run, tmp_path: Path) -> None:
    given = arguments(checkpoint("llava"), method="divprune", keep_ratio=0.5)
    code, _, err = run(broken(tasks), given, "--output_path", str(tmp_path / "out"))
    assert code == 1
    assert error_line(err).startswith("error: tp_broken, document 2: ")
    assert not written(tmp_path / "out", "_results.json")


def test_a_broken_picture_is_named(checkpoint: Find, tasks: LocalTasks, run: Run, tmp_path: Path) -> None:
    """The others have the answers that they have without it."""
    given = arguments(checkpoint("llava"), method="divprune", keep_ratio=0.5, errors="name")
    outputs = ["--log_samples", "--output_path", str(tmp_path / "out")]
    code, out, _ = run(f"{broken(tasks)},{tasks.pictures()}", given, *outputs)
    assert code == 0
    assert "no answer to tp_broken, document 2" in out
    (report,) = written(tmp_path / "out", "_tokenprune_report.json")
    (failed,) = json.loads(report.read_text(encoding="utf-8"))["tasks"]["tp_broken"]["failed"]
    assert failed["document"] == 2
    texts = []
    for name in ("tp_broken", "tp_pictures"):
        (file,) = written(tmp_path / "out", f"_samples_{name}.jsonl")
        texts.append([json.loads(line)["filtered_resps"] for line in file.open()])
    assert texts[0][2] == ""
    assert [answer for place, answer in enumerate(texts[0]) if place != 2] == [
        answer for place, answer in enumerate(texts[1]) if place != 2
    ]


def test_an_error_of_a_task_is_an_exit_code_too(
    checkpoint: Find, tasks: LocalTasks, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """lmms-eval tries a task's rule five times, two seconds apart."""
    import tenacity

    monkeypatch.setattr(tenacity.nap.time, "sleep", lambda seconds: None)
    given = arguments(checkpoint("llava"), method="unpruned")
    code, _, err = run(tasks.pictures(process_results="utils.broken_score"), given)
    assert code == 1
    assert "RetryError" in error_line(err)


def test_prompts_with_text_before_a_picture(checkpoint: Find, tasks: LocalTasks, run: Run) -> None:
    name = tasks.pictures(doc_to_messages="utils.interleaved")
    given = arguments(checkpoint("llava"), method="divprune", keep_ratio=0.5)
    code, _, err = run(name, given)
    assert code == 1
    assert "text stands before or between its pictures" in error_line(err)
    assert run(name, {**given, "interleaved": "media-first"})[0] == 0


def test_multiple_choice_in_chat_mode_is_an_exit_code(checkpoint: Find, tasks: LocalTasks, run: Run) -> None:
    """lmms-eval has it for simple models alone."""
    code, _, err = run(tasks.choices(), arguments(checkpoint("llava"), method="unpruned"))
    assert code == 1
    assert "messages is used for generation only" in error_line(err)


def test_settings_that_cannot_be_honoured(checkpoint: Find, tasks: LocalTasks, run: Run) -> None:
    given = arguments(checkpoint("llava"), method="divprune", keep_ratio=0.5)
    name = tasks.pictures(generation_kwargs={"max_new_tokens": 2, "image_aspect_ratio": "original"})
    code, _, err = run(name, given)
    assert code == 1
    assert "image_aspect_ratio='original' cannot be honoured; add ignore=image_aspect_ratio" in error_line(err)
    assert run(name, {**given, "ignore": "image_aspect_ratio"})[0] == 0


# ---- lmms-eval's cache of answers ----


def cached(out: str) -> int:
    """Requests that were not asked again."""
    return COUNT if f"all {COUNT} requests served from cache" in out else out.count("cache hits (")


def test_a_cached_answer_of_another_method_is_not_used(
    checkpoint: Find, tasks: LocalTasks, run: Run, tmp_path: Path
) -> None:
    """The arguments are the same text; the method's file, and then the checkpoint, is another one."""
    name = tasks.pictures()
    file, model = tmp_path / "method.yaml", tmp_path / "model"
    shutil.copytree(checkpoint("llava"), model)
    given = arguments(model, method=file)
    use = ["--use_cache", str(tmp_path / "cache")]

    def asked() -> int:
        code, out, _ = run(name, given, *use)
        assert code == 0
        return COUNT - cached(out)

    file.write_text(FASTV, encoding="utf-8")
    assert asked() == COUNT
    assert asked() == 0
    file.write_text(RANDOM, encoding="utf-8")
    assert asked() == COUNT
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    config["text_config"]["rms_norm_eps"] = 1e-4
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert asked() == COUNT
    assert asked() == 0


def test_cached_values_of_choices(checkpoint: Find, tasks: LocalTasks, run: Run, tmp_path: Path) -> None:
    name = tasks.choices()
    options = ["--force_simple", "--use_cache", str(tmp_path / "cache"), "--log_samples"]
    lines = []
    for number in range(2):
        out_path = tmp_path / f"out{number}"
        given = arguments(checkpoint("llava"), method="divprune", keep_ratio=0.5)
        assert run(name, given, *options, "--output_path", str(out_path))[0] == 0
        (file,) = written(out_path, "_samples_tp_choices.jsonl")
        lines.append([json.loads(line)["filtered_resps"] for line in file.open()])
    assert lines[0] == lines[1]
    report = (
        json.loads(written(tmp_path / "out1", "_tokenprune_report.json")[0].read_text())
        if written(tmp_path / "out1", "_tokenprune_report.json")
        else {"tasks": {}}
    )
    assert report["tasks"] == {}, "nothing was asked again"


def test_named_errors_and_the_cache(checkpoint: Find, tasks: LocalTasks, run: Run, tmp_path: Path) -> None:
    given = arguments(checkpoint("llava"), method="divprune", keep_ratio=0.5, errors="name")
    code, _, err = run(tasks.pictures(), given, "--use_cache", str(tmp_path / "cache"))
    assert code == 1
    assert "errors=name and --use_cache" in error_line(err)


def test_a_missing_video_is_named_by_its_path(checkpoint: Find, tasks: LocalTasks, run: Run) -> None:
    rows = [{"video": str(tasks.folder / "gone.mp4"), "question": "what is this", "answer": "w62"}]
    name = tasks.add("tp_gone", rows, doc_to_visual="utils.videos")
    code, _, err = run(name, arguments(checkpoint("qwen2.5-vl"), method="divprune", keep_ratio=0.5))
    assert code == 1
    assert error_line(err).startswith("error: tp_gone, document 0, video 1: the file ")
    assert "does not exist" in error_line(err)
    assert "gone.mp4)" in error_line(err)
