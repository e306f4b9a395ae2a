"""Which precision ``--trainer.precision auto`` is, by what the device can do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
import yaml
from helpers.small import small_net as small_net
from running.settings import best_precision

Fit = Callable[..., int]
RUNS = Path("logs/alexnet-shapes10")


def a_machine(
    monkeypatch: pytest.MonkeyPatch, cpu: dict[str, bool], gpu: bool | None = None, mps: bool = False
) -> None:
    """One with these instructions, and a GPU that has bfloat16 or not, if there is one."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: MappingProxyType(cpu))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: gpu or including_emulation)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("machine", "accelerator", "precision"),
    [
        ({"cpu": {"avx512_bf16": True, "amx_bf16": False}}, "auto", "bf16-mixed"),  # Zen 4
        ({"cpu": {"avx512_bf16": True, "amx_bf16": True}}, "cpu", "bf16-mixed"),  # Sapphire Rapids
        ({"cpu": {"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}}, "auto", "32-true"),  # Skylake
        ({"cpu": {"architecture": True}}, "auto", "32-true"),  # not x86
        ({"cpu": {}, "gpu": True}, "auto", "bf16-mixed"),
        ({"cpu": {}, "gpu": True}, "gpu", "bf16-mixed"),
        ({"cpu": {"avx512_bf16": True}, "gpu": False}, "cuda", "32-true"),  # emulates it
        ({"cpu": {}, "gpu": True}, "cpu", "32-true"),
        ({"cpu": {"avx512_bf16": True}, "mps": True}, "auto", "32-true"),
        ({"cpu": {"avx512_bf16": True}}, "tpu", "32-true"),
    ],
)
def test_what_has_instructions_for_bfloat16_gets_it(
    monkeypatch: pytest.MonkeyPatch, machine: dict[str, Any], accelerator: str, precision: str
) -> None:
    a_machine(monkeypatch, **machine)
    assert best_precision(accelerator) == precision


def test_it_is_what_torch_says_of_this_machine() -> None:
    flags = Path("/proc/cpuinfo")
    if not flags.exists():
        pytest.skip("no /proc/cpuinfo")
    has = {"avx512_bf16", "amx_bf16"} & set(flags.read_text(encoding="utf-8").split())
    assert best_precision("cpu") == ("bf16-mixed" if has else "32-true")


@pytest.mark.usefixtures("small_net")
def test_it_is_said_kept_and_gone_on_with(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On another machine too, unless a flag says otherwise."""

    def kept() -> tuple[str, str]:
        run = max(RUNS.iterdir())
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        return yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["trainer"]["precision"], summary[
            "precision"
        ]

    a_machine(monkeypatch, {"avx512_bf16": True})
    assert fit("--looks=false", "--trainer.max_epochs=1", "--trainer.precision=auto") == 0
    assert "precision: bf16-mixed, by --trainer.precision auto" in caplog.text
    assert kept() == ("bf16-mixed", "bf16-mixed")
    a_machine(monkeypatch, {})
    caplog.clear()
    assert fit("--ckpt_path=last", small=False) == 0
    assert "precision: " not in caplog.text
    assert kept() == ("bf16-mixed", "bf16-mixed")
    assert fit("--ckpt_path=last", "--trainer.precision=auto", small=False) == 0
    assert kept() == ("32-true", "32-true")


def test_the_precision_of_an_earlier_version_s_config(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    """null, which is Lightning's float32."""
    Path("config.yaml").write_text("trainer: {precision: null}\n", encoding="utf-8")
    assert fit("-c", "config.yaml", "--print_config", small=False) == 0
    assert yaml.safe_load(capsys.readouterr().out)["trainer"]["precision"] is None
