"""What a sweep is to run: the configs of the variants, and the jobs that come of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from ablation.claims import BASELINE, CLAIMS
from ablation.plan import CONFIGS, choose, plan, read_config, state_of
from ablation.table import markdown, read_runs
from helpers import ROOT
from helpers.ablation import ABLATIONS
from running.flags import leaves

LRN_13_TO_11 = [str(path) for path in CONFIGS.glob("*_13_to_11/*.yaml") if path.stem != "with"]
RAW = {"data.input_scale": "raw", "model.init": "code", "model.bias": 0.1, "model.lr": 0.01}
CHANGES = {
    "no_lrn": {"model.lrn": False},
    "no_overlap": {"model.overlap_pooling": False},
    "no_lighting": {"data.lighting_std": 0},
    "no_dropout": {"model.dropout": 0},
    "tanh": {"model.activation": "tanh", "model.lr": 0.005},
    "half_kernels": {"model.groups": 1, "model.half_kernels": True},
    "no_groups": {"model.groups": 1},
    "no_augmentation": {"data.flip": False, "data.crop_size": 32, "data.crop_padding": 0},
    "ten_crops": {"data.test_crops": 10},
    "raw": RAW,
    "raw_no_lrn": RAW | {"model.lrn": False},
    "raw_no_lrn_slow": RAW | {"model.lrn": False, "model.lr": 0.005},
}


def test_each_config_holds_what_differs_and_nothing_else() -> None:
    found = {variant.name: variant for variant in choose(None, ABLATIONS / "baseline.yaml")}
    assert {name: found[name].changes for name in CHANGES} == CHANGES
    assert [name for name, variant in found.items() if variant.test_only] == ["ten_crops"]
    assert found.keys() - {BASELINE} == CLAIMS.keys() - {"without", "published_without", "first_with"}


def test_the_paper_s_own_networks_differ_in_one_thing() -> None:
    """Figure 1's also in the learning rates, "chosen independently", and in how long they are trained."""
    changes = {path.stem: read_config(path) for path in CONFIGS.glob("*_13_to_11/*.yaml") if path.stem != "with"}
    assert changes == {
        "without": {"model.lrn": False},
        "published_without": {"model.lrn": False, "model.network": "conv-local-13pct"},
        "first_with": {"model.network": "conv-local-11pct-first"},
    }
    tanh = read_config(CONFIGS / "figure1/tanh.yaml")
    assert tanh == {"model.activation": "tanh", "model.lr": 0.008, "trainer.max_epochs": 60}


@pytest.mark.parametrize("name", [BASELINE, *CHANGES])
def test_each_config_is_one_that_fit_takes(
    fit: Callable[..., int], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    configs = ["-c", str(ABLATIONS / "baseline.yaml"), "-c", str(ABLATIONS / f"{name}.yaml")]
    assert fit("fit", *configs, "--print_config", small=False) == 0
    settings = dict(leaves(yaml.safe_load(capsys.readouterr().out)))
    for key, value in CHANGES.get(name, {}).items():
        assert settings[key] == value
    assert settings["looks"] is False


@pytest.mark.parametrize("names", [["figure1/relu", "figure1/tanh"], ["lrn_13_to_11/with", "lrn_13_to_11/first_with"]])
def test_the_paper_s_own_networks_train_and_are_looked_at(fit: Callable[..., int], names: list[str]) -> None:
    words = "--data.source shapes10 --data.subset_size 20 --data.batch_size 10 --trainer.max_epochs 1 --looks true"
    words += " --trainer.accelerator cpu --trainer.precision 32-true --trainer.limit_test_batches 2"
    configs = (word for name in names for word in ("-c", str(CONFIGS / f"{name}.yaml")))
    assert fit("fit", *configs, *words.split(), small=False) == 0
    (summary,) = Path("logs").glob("*/*/summary.json")
    found = json.loads(summary.read_text(encoding="utf-8"))
    assert found["images"] == 20
    assert 0 <= found["test_top1"] <= 1


def test_what_a_claim_is_held_against_is_run_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CLAIMS, "tanh", CLAIMS["tanh"]._replace(against="no_dropout"))
    chosen = choose(["tanh", "no_lrn", "baseline"], ABLATIONS / "baseline.yaml")
    assert [variant.name for variant in chosen] == [BASELINE, "no_dropout", "tanh", "no_lrn"]


def test_the_quick_baseline_is_the_other_in_small() -> None:
    quick, long = (read_config(path) for path in (CONFIGS / "quick_ablations.yaml", ABLATIONS / "baseline.yaml"))
    assert quick == long | {"data.subset_size": 5000, "trainer.max_epochs": 12}


@pytest.mark.parametrize(
    ("sweep", "baseline", "only", "flags"),
    [
        ("quick_baseline", "quick_ablations", [], ""),
        ("ablations", "ablations/baseline", None, ""),
        ("ablations_float32", "ablations/baseline", None, ""),
        ("dropout", "quick_ablations", ["no_dropout"], "--trainer.max_epochs 50"),
        ("figure1", "figure1/relu", [str(CONFIGS / "figure1/tanh.yaml")], ""),
        ("lrn_13_to_11", "lrn_13_to_11/with", LRN_13_TO_11, ""),
        (
            "lrn_13_to_11_short",
            "lrn_13_to_11/with",
            LRN_13_TO_11,
            "--trainer.max_epochs 40 --data.batch_size 128 --model.warmup 0.25",
        ),
    ],
)
def test_the_runs_that_are_kept_are_those_of_today_s_configs(
    sweep: str, baseline: str, only: list[str] | None, flags: str
) -> None:
    """A default that is added to default.yaml would have all of them run again."""
    variants, results = choose(only, CONFIGS / f"{baseline}.yaml"), ROOT / "results" / sweep
    kept = {path: json.loads(path.read_text(encoding="utf-8")) for path in results.glob("*/summary.json")}
    seeds = 1 + max(run["seed"] for run in kept.values())
    jobs = {job.summary: job for job in plan(variants, seeds, flags.split(), results, Path("logs"))}
    assert {str(path): state_of(jobs[path]) for path in kept} == {str(path): "done" for path in kept}
    for path, run in kept.items():
        assert run["changes"] == jobs[path].variant.changes
        assert run["command"] == jobs[path].shown_command
    assert (results / "table.md").read_text(encoding="utf-8") == f"# Ablations\n\n{markdown(read_runs(results))}"


def test_a_plan_goes_seed_by_seed() -> None:
    jobs = plan(choose(["tanh"], ABLATIONS / "baseline.yaml"), 2, ["--data.val_size", "7"], Path("out"), Path("logs"))
    assert [str(job) for job in jobs] == ["baseline seed 0", "tanh seed 0", "baseline seed 1", "tanh seed 1"]
    assert jobs[1].recipe["settings"] == {**jobs[0].recipe["settings"], "model.activation": "tanh", "model.lr": 0.005}
    assert jobs[1].recipe["settings"]["trainer.log_every_n_steps"] == 10  # default.yaml's
    assert jobs[1].recipe["flags"] == ["--data.val_size", "7"]


def test_a_recipe_that_can_t_be_read_is_said() -> None:
    (job,) = plan(choose([], ABLATIONS / "baseline.yaml"), 1, [], Path("out"), Path("logs"))
    assert state_of(job) == "new"
    job.folder.mkdir(parents=True)
    (job.folder / "recipe.json").write_text("{")
    assert state_of(job) == "logs/baseline/seed0/recipe.json: can't be read. Delete logs/baseline/seed0."
