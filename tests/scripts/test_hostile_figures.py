"""Files of figures from anywhere: a value of another type is one line that names the file and the key."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ablate
import plateau
import pytest
import tables
from ablation.table import comparable, compare, markdown, read_runs
from helpers import ROOT
from helpers.ablation import a_run, complaint, status

OTHERS = [None, "text", -1, 1.5, float("nan"), 10**400, True, [], {}, [["x"]], {"x": {}}]
RUN = Path("results/ablations/tanh-seed0/summary.json")


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(item, (*path, key))


def mutations(whole: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every value deleted, or replaced by one of another type: where it is, and the whole with it."""
    for path in places(whole):
        for other in [*OTHERS, ...]:
            mutated: Any = {"": copy.deepcopy(whole)}
            owner, keys = mutated, ["", *path]
            for key in keys[:-1]:
                owner = owner[key]
            if other is ...:
                del owner[keys[-1]]
            else:
                owner[keys[-1]] = copy.deepcopy(other)
            yield path, mutated.get("")


def refusal(call: Callable[[], object]) -> str | None:
    """What a call's ValueError says, in one line; None where there is none."""
    try:
        call()
    except ValueError as error:
        return str(error) if "\n" not in str(error) else f"of several lines: {error}"
    return None


def test_every_mutation_of_a_run_s_summary() -> None:
    """For the table and the README: it makes a table, or a ValueError of one line that names the file."""
    for name in ("baseline", "tanh"):
        for seed in (0, 1):
            path = Path(f"results/ablations/{name}-seed{seed}/summary.json")
            path.parent.mkdir(parents=True)
            path.write_text(json.dumps(a_run(name, seed)), encoding="utf-8")
    tried: list[str | None] = []
    for path, mutated in mutations({**a_run("tanh", 0), "command": "python fit.py", "test_top5": 0.9}):
        RUN.write_text(json.dumps(mutated), encoding="utf-8")
        tried.append(refusal(lambda: markdown(comparable(read_runs(RUN.parents[1]))[0])))
        tried.append(refusal(lambda: tables.by_recipe(RUN.parents[1])))
        assert all(said is None or said.startswith("results/ablations/") for said in tried[-2:]), (
            path,
            mutated,
            tried[-2:],
        )
    assert len(tried) > 600
    assert tried.count(None) < 2 / 3 * len(tried)


@pytest.mark.parametrize("key", ["seconds", "test_top1", "images", "history", "settings", "flags", "variant"])
def test_ablate_names_the_file_and_the_key(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    RUN.parent.mkdir(parents=True)
    RUN.write_text(json.dumps({**a_run("tanh", 0), key: 2.5 if key != "seconds" else "long"}), encoding="utf-8")
    assert status(ablate.main, "--table") == 2
    assert complaint(capsys).startswith(f"error: {RUN}: {key}: ")


def test_every_mutation_of_the_benchmark_and_of_the_plateau() -> None:
    text = json.loads((ROOT / "results/benchmark.json").read_text())
    text["rows"] = text["rows"][:2]
    Path("benchmark.json").touch()
    for path, mutated in mutations(text):
        Path("benchmark.json").write_text(json.dumps(mutated), encoding="utf-8")
        assert (refusal(lambda: tables.benchmark_table(Path())) or "benchmark.json: ").startswith("benchmark.json: "), (
            path
        )
    kept = json.loads((ROOT / "results/plateau.json").read_text(encoding="utf-8"))
    kept = {"paper": {**kept["paper"], "losses": kept["paper"]["losses"][:2]}}
    for path, mutated in mutations(kept):
        Path("plateau.json").write_text(json.dumps(mutated), encoding="utf-8")
        said = refusal(lambda: plateau.table(plateau.read_kept(Path("plateau.json"))))
        assert (said or "plateau.json: ").startswith("plateau.json: "), path


def test_a_pipe_or_a_device_for_a_summary_is_not_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    RUN.parent.mkdir(parents=True)
    os.mkfifo(RUN)
    assert status(ablate.main, "--table") == 2
    assert f"{RUN}: can't be read (no file)" in complaint(capsys)
    RUN.unlink()
    RUN.symlink_to("/dev/zero")
    assert status(ablate.main, "--table") == 2
    assert f"{RUN}: can't be read (no file)" in complaint(capsys)


def test_names_reach_the_terminal_whole_and_without_its_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    """rich takes ``[exp a]`` for its markup; a terminal takes ``ESC ] 0 ;`` for its title."""
    for name in ("baseline", "b[exp a]", "\x1b]0;owned\x07"):
        path = Path("results/ablations") / f"{name}-seed0".replace("\x1b]0;owned\x07", "c") / "summary.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({**a_run(name, 0), "changes": {}, "settings": {"model.lr": 0.02}}), encoding="utf-8")
    assert status(ablate.main, "--table") == 0
    said = capsys.readouterr().out
    assert "b[exp a]" in said
    assert "?]0;owned?" in said
    assert "\x1b" not in said
    assert "b[exp a]" in {row["variant"] for row in compare(read_runs(Path("results/ablations")))}


def test_an_error_s_names_are_printable(capsys: pytest.CaptureFixture[str]) -> None:
    assert status(ablate.main, "--baseline", "\x1b]0;owned\x07.yaml") == 2
    said = complaint(capsys)
    assert "?]0;owned?.yaml" in said
    assert "\x1b" not in said
