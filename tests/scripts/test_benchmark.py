"""The benchmark: its peers do the same work as ours, its turns and its table are right, and each section runs."""

from __future__ import annotations

import json
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import benchmark
import pytest
import torch
from benchmark import PAPER, Lap, PlainAlexNet, apart, main, row, take_turns, timed, training_step
from helpers import TINY
from helpers.ablation import complaint, status

SCRIPT = str(Path(benchmark.__file__))


@pytest.fixture(autouse=True)
def _memory_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is set for this process can't be taken back."""
    monkeypatch.setattr(benchmark, "keep_memory", lambda: False)


@pytest.fixture
def at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """``apart`` without a process, which takes seconds to start, but with what one could be given."""

    def without_process(make: Callable[..., benchmark.Job], keep: bool = True, **settings: Any) -> benchmark.Job:
        def go() -> Lap:
            torch.manual_seed(0)
            lap: Lap = pickle.loads(pickle.dumps(partial(make, **settings)))()()
            return lap

        return go

    monkeypatch.setattr(benchmark, "apart", without_process)


Step = Callable[[], torch.Tensor]


def equal_networks(
    images: torch.Tensor, targets: torch.Tensor, network: dict[str, int], fc8: float = 1.0
) -> tuple[torch.nn.Module, Step, torch.nn.Module, Step]:
    """Ours and its step, the plain one and its step, from the same weights, without dropout; fc8's times ``fc8``."""
    net, our = training_step(False, images, targets, dropout=0.0, init="he", **network)
    net.get_submodule("fc8").weight.data *= fc8
    plain, their = training_step(True, images, targets, **network)
    for module in plain.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for theirs, ours in zip(plain.parameters(), net.parameters(), strict=True):
        theirs.data.copy_(ours.data)
    return net, our, plain, their


@pytest.mark.parametrize("network", [TINY, {"image_size": 40, "conv1_stride": 4}])
def test_the_plain_network_does_the_same_work(network: dict[str, int]) -> None:
    """Same weights, same batch: losses and weights agree within float32's rounding, before and after a step."""
    torch.manual_seed(0)
    images, targets = torch.rand(4, 3, network["image_size"], network["image_size"]), torch.arange(4)
    net, our, plain, their = equal_networks(images, targets, network)
    losses = torch.tensor([[our(), their()] for _ in range(2)])
    assert losses[1, 0] < losses[0, 0]
    torch.testing.assert_close(losses[:, 0], losses[:, 1], rtol=1e-5, atol=0)
    for theirs, ours in zip(plain.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(ours.data.contiguous(), theirs.data, rtol=1e-4, atol=1e-6)


def test_a_short_run_is_the_plain_one_within_rounding() -> None:
    """A dozen steps of it all (LRN by hand, channels_last, fused SGD) against torch's parts, with equal weights."""
    torch.manual_seed(0)
    targets = torch.arange(20) % 10
    images = torch.randn(20, 3, TINY["image_size"], TINY["image_size"]) + targets[:, None, None, None] / 3
    # He's fc8 is too large for a start at ln(10): the first steps would be chaos.
    net, our, plain, their = equal_networks(images, targets, TINY, fc8=0.1)
    losses = torch.tensor([[our(), their()] for _ in range(12)])
    assert losses[-1, 1] < 0.5 * losses[0, 1]  # it learns, so there is something to compare
    torch.testing.assert_close(losses[:, 0], losses[:, 1], rtol=5e-3, atol=1e-4)
    with torch.no_grad():
        assert torch.equal(net(images).argmax(1), plain(images).argmax(1))
        torch.testing.assert_close(net(images), plain(images), rtol=0.05, atol=0.05)


def test_the_paper_s_network_is_padded_to_227() -> None:
    padding = PlainAlexNet(**PAPER)[0]
    assert isinstance(padding, torch.nn.ZeroPad2d)
    assert padding.padding == (0, 3, 0, 3)


def test_multiply_adds_of_the_paper_s_network() -> None:
    """By hand: forward, and twice that backward, save that nobody needs the gradient of the images."""
    layers = [(96, 55 * 55, 3 * 11 * 11), (256, 27 * 27, 48 * 25), (384, 13 * 13, 256 * 9)]
    layers += [(384, 13 * 13, 192 * 9), (256, 13 * 13, 192 * 9), (4096, 1, 9216), (4096, 1, 4096), (10, 1, 4096)]
    forward = [outputs * positions * inputs for outputs, positions, inputs in layers]
    assert benchmark.multiply_adds(128, **PAPER) == 128 * (3 * sum(forward) - forward[0])


def test_turns_alternate_and_the_median_counts() -> None:
    seconds = {"a": iter([1.0, 9.0, 2.0]), "b": iter([5.0, 4.0, 6.0])}
    order = []

    def job(name: str) -> Lap:
        order.append(name)
        lap = next(seconds[name])
        return Lap(lap, peak=lap)

    laps = take_turns({name: partial(job, name) for name in seconds}, rounds=3)
    assert "".join(order) == "ababab"
    assert (laps["a"].seconds, laps["b"].seconds) == (2.0, 5.0)
    assert (laps["a"].peak, laps["b"].peak) == (9.0, 6.0)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured on Linux alone")
def test_memory_s_peak_is_the_lap_s_own() -> None:
    timed(lambda: torch.ones(50_000_000))  # 200 MB, gone again
    lap = timed(lambda: torch.ones(25_000_000).sum())
    assert 90 < lap.taken < 130
    assert lap.taken < lap.peak


WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def make_pid(answer: int) -> benchmark.Job:
    return lambda: timed(lambda: (os.getpid(), answer, *map(os.environ.get, WAITING)))


def make_death() -> benchmark.Job:
    return lambda: os._exit(3)


@pytest.mark.parametrize("keep", [True, False])
def test_a_job_apart_has_another_process_which_ends(keep: bool) -> None:
    """In a peer's, threads wait as OpenMP's do by themselves: what ``start.py`` settles for ours is not lent to it."""
    pid, answer, policy, spins = apart(make_pid, keep, answer=42)().value
    assert answer == 42
    ours = tuple(map(os.environ.get, WAITING))  # settled by start.py, which benchmark.py imports
    assert (policy, spins) == ours if keep else spins == benchmark.DEFAULT_WAIT["GOMP_SPINCOUNT"]
    assert pid != os.getpid()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_the_death_of_a_job_s_process_is_told() -> None:
    with pytest.raises(RuntimeError, match=r"make_death: its process ended"):
        apart(make_death)()


@pytest.mark.parametrize(
    ("ours", "unit", "peer", "ratio"),
    [(2.0, "s", 5.0, 2.5), (5.0, "MB", 2.0, 0.4), (5.0, "images/s", 2.0, 2.5), (0.0, "", None, None)],
)
def test_a_ratio_above_one_is_in_our_favour(ours: float, unit: str, peer: float | None, ratio: float | None) -> None:
    found = row("", ours, unit, math.nan if peer is None else peer)
    assert (found["peer"], found["ratio"]) == (peer, ratio)


@pytest.mark.parametrize("plain", [True, False])
def test_a_step_and_a_pipeline_take_their_time(plain: bool) -> None:
    assert benchmark.make_step(plain, batch=2, steps=2, **TINY)().seconds > 0
    epoch = benchmark.make_pipeline(plain, images=50, batch=10, image_size=24, skip=2, crop_size=28)
    assert epoch().seconds > 0


@pytest.mark.parametrize("method", ["ours", "faiss", "sklearn"])
def test_a_search_finds_the_nearest(method: str) -> None:
    if method != "ours":
        pytest.importorskip(method)
    torch.manual_seed(0)
    found, distances = benchmark.make_search(method, queries=20, gallery=100, width=16, k=3)().value
    torch.manual_seed(0)
    centres = torch.randn(10, 16)
    near, far = (torch.randn(n, 16).add_(centres[torch.arange(n) % 10]).relu_().double() for n in (20, 100))
    expected = torch.cdist(near, far).topk(3, largest=False)
    assert (found == expected.indices.numpy()).all()
    assert distances == pytest.approx(expected.values.numpy(), rel=1e-6)


def check(rows: list[dict[str, Any]]) -> None:
    assert rows
    for line in rows:
        assert 0 <= line["ours"] < math.inf
        assert line["unit"] in ("ms", "s", "MB", "images/s", "%", "G/s", "")
    assert all(line["ours"] <= 1e-6 for line in rows if "difference" in line["what"])
    assert all(line["ours"] == 100 for line in rows if "no farther" in line["what"])


@pytest.mark.usefixtures("at_home")
@pytest.mark.parametrize("section", sorted({*benchmark.SECTIONS} - {"startup"}))
def test_a_section_at_toy_size(section: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "step_times", lambda steps, network, batch: [float(n) for n in range(steps + 1)])
    monkeypatch.setattr(benchmark, "our_validations", lambda *settings: [(0.01, 0.0), (0.02, 1.0)])
    measure, quick = benchmark.SECTIONS[section]
    check(measure(**quick))


@pytest.mark.slow
def test_as_a_script() -> None:
    """With a section that starts ``fit.py`` itself."""
    words = ["--quick", "--only", "lrn", "startup", "--json", "out.json"]
    done = subprocess.run([sys.executable, SCRIPT, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "nn.LocalResponseNorm" in done.stdout
    contents = json.loads(Path("out.json").read_text(encoding="utf-8"))
    assert contents["quick"] is True
    assert {"date", "processor", "cores", "threads", "load", "system", "versions"} <= set(contents["machine"])
    assert [row["section"] for row in contents["rows"]] == ["lrn"] * 4 + ["startup"] * 10
    assert set(contents["rows"][0]) == {"section", "what", "ours", "peer", "unit", "ratio", "against", "date"}
    check(contents["rows"])


@pytest.mark.slow
@pytest.mark.usefixtures("at_home")
def test_time_to_accuracy_is_taken_of_fit_itself(
    fit: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, with the words that a process of its own would be given."""

    def run(command: list[str], **_: Any) -> SimpleNamespace:
        status = fit(*command[2:], small=False)
        said = capsys.readouterr()
        return SimpleNamespace(returncode=status, stdout=said.out, stderr=said.err)

    monkeypatch.setattr(benchmark.subprocess, "run", run)
    rows = benchmark.accuracy_rows(**benchmark.SECTIONS["accuracy"][1])
    assert rows
    check(rows)


@pytest.mark.usefixtures("at_home")
def test_retrieval_without_its_peers_is_said_and_ours_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark.importlib.util, "find_spec", lambda name: None)
    main(["--only", "retrieval", "--quick"])
    said = capsys.readouterr()
    assert "pip install -e '.[benchmark]'" in said.err
    assert "retrieval, 20 x 100" in said.out


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (["--only", "lnr"], "lnr"),
        (["--quik"], "--quik"),
        (["--json", "nowhere/out.json"], "--json: nowhere"),
        (["--json", "half.json"], "half.json: has no machine"),
    ],
)
def test_refusals_take_one_line(words: list[str], wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("half.json").write_text('{"quick": false}', encoding="utf-8")
    assert status(main, *words) == 2
    assert wrong in complaint(capsys)


def test_a_section_that_is_measured_again_takes_its_own_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the same machine; on another the file begins anew."""
    value = iter(range(1, 10))

    def measure() -> list[benchmark.Row]:
        return [row("it", next(value), "s")]

    monkeypatch.setattr(benchmark, "SECTIONS", {name: (measure, {}) for name in ("lrn", "step", "loop")})

    def run(*sections: str) -> list[tuple[str, float]]:
        assert status(main, "--only", *sections, "--json", "out.json") == 0
        rows = json.loads(Path("out.json").read_text(encoding="utf-8"))["rows"]
        return [(row["section"], row["ours"]) for row in rows]

    assert run("lrn", "loop") == [("lrn", 1), ("loop", 2)]
    assert run("step", "lrn") == [("lrn", 4), ("step", 3), ("loop", 2)]
    monkeypatch.setattr(benchmark, "processor", lambda: "another")
    assert run("step") == [("step", 5)]


def test_busy_programs_are_gone_afterwards() -> None:
    with benchmark.busy(2) as others:
        assert [other.poll() for other in others] == [None, None]
    assert all(other.poll() is not None for other in others)


def test_precision_has_rows_of_both_where_the_processor_has_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "best_precision", lambda accelerator: "bf16-mixed")
    monkeypatch.setattr(
        benchmark, "apart", lambda make, keep=True, **settings: lambda: benchmark.Lap(1 + settings["bf16"])
    )
    rows = benchmark.precision_rows(sizes=((24, 4),), rounds=1)
    assert [row["against"] for row in rows] == [
        "fp32, channels_last",
        "fp32, NCHW",
        "bf16, NCHW",
        "bf16, plain PyTorch",
    ]
    assert [row["ratio"] for row in rows] == [0.5, 0.5, 1, 1]


@pytest.mark.parametrize(("target", "seconds"), [(0.3, 10), (0.5, 20), (0.6, 40), (0.61, math.inf)])
def test_time_to_accuracy_is_that_of_the_first_validation_that_has_it(target: float, seconds: float) -> None:
    assert benchmark.time_to(target, [(10, 0.3), (20, 0.55), (30, 0.2), (40, 0.6), (50, 0.6)]) == seconds


def test_a_peer_that_gave_up_has_no_ratio() -> None:
    ours, slow, never = [(10.0, 0.2), (20.0, 0.6)], [(30.0, 0.5), (60.0, 0.7)], [(50.0, 0.542), (110.0, 0.5)]
    found = benchmark.accuracy_row("", 0.6, [ours], [slow])
    assert (found["ours"], found["peer"], found["ratio"]) == (20, 60, 3)
    found = benchmark.accuracy_row("", 0.6, [ours], [never])
    assert (found["ours"], found["peer"], found["ratio"]) == (20, 110, None)
    assert found["against"] == "plain PyTorch, not within that: 54.2 %"


def test_the_peer_has_three_times_our_time_and_both_precisions(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = []

    def plain(target: float, bf16: bool, seed: int, changes: dict[str, Any], limit: float) -> benchmark.Validations:
        limits.append((bf16, seed, limit))
        return [(90, 0.6)]

    ours = {False: [(10, 0.3), (20, 0.6), (30, 0.7)], True: [(5, 0.3), (8, 0.59)]}
    monkeypatch.setattr(benchmark, "best_precision", lambda accelerator: "bf16-mixed")
    monkeypatch.setattr(benchmark, "our_validations", lambda target, bf16, seed, changes: ours[bf16])
    monkeypatch.setattr(benchmark, "plain_validations", plain)
    toy = {"data.source": "shapes10"}
    assert [row["ratio"] for row in benchmark.accuracy_rows(rounds=2, **toy)] == [4.5]
    assert limits == [(False, 0, 60), (False, 1, 60)]
    assert "bf16, seed 0: 59.0 % at best; its row is left out" in capsys.readouterr().err


def test_without_cifar10_time_to_accuracy_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.accuracy_rows() == []
    assert "CIFAR-10 is not in data" in capsys.readouterr().err


def test_our_run_ends_at_the_accuracy_or_before_the_test(capsys: pytest.CaptureFixture[str]) -> None:
    def validate(top1: float, epoch: int = 0, sanity_checking: bool = False) -> str:
        metrics = {"val/top1": torch.tensor(top1)}
        trainer: Any = SimpleNamespace(
            sanity_checking=sanity_checking, callback_metrics=metrics, current_epoch=epoch, max_epochs=10
        )
        benchmark.AccuracyClock(0.7).on_validation_end(trainer)
        return capsys.readouterr().out

    assert validate(0.9, sanity_checking=True) == ""
    assert validate(0.69).endswith(" 0.69\n")
    with pytest.raises(SystemExit):
        validate(0.7)  # less than that in float32
    with pytest.raises(SystemExit):
        validate(0.69, epoch=9)  # what follows is the test


def test_the_plain_run_has_the_recipe_s_images_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the accuracy, or after the epoch in which its time is over."""
    settings: list[dict[str, Any]] = []

    def recorded(make: Callable[..., benchmark.Job], keep: bool, **given: Any) -> benchmark.Job:
        settings.append(given)
        return make(**given)

    monkeypatch.setattr(benchmark, "apart", recorded)
    toy = {**benchmark.TOY_RUN, "data.subset_size": 20, "data.val_size": 20}
    for target, limit in ((0.0, 1e9), (2.0, 0.0)):  # either would go on for ever
        ((seconds, top1),) = benchmark.plain_validations(target, False, 3, toy, limit)
        assert 0 < seconds < 600  # since its start, not the clock's time
        assert top1 * 20 == pytest.approx(round(top1 * 20))
    data = settings[0]["data"]
    of_the_recipe = {"batch_size": 32, "crop_size": 32, "crop_padding": 2, "lighting_std": 0}  # best10.yaml's
    assert data.items() >= {**of_the_recipe, "image_size": 24, "seed": 3, "subset_size": 20}.items()
