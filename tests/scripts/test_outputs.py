"""No script writes over a file that it did not write."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import ablate
import benchmark
import plateau
import pytest
from helpers import ROOT
from matplotlib.figure import Figure
from running.outputs import check_output, png_mark

Main = Callable[[], object]
SCRIPTS: dict[str, tuple[str, str, str]] = {  # the script's words, the user's file, one of the script's own
    "benchmark's figures": ("benchmark --json their.json", "their.json", "results/benchmark.json"),
    "plateau's figures": ("plateau --json their.json", "their.json", "results/plateau.json"),
    "plateau's picture": ("plateau --png their.png", "their.png", "docs/plateau.png"),
    "a sweep's picture": ("ablate --table --out .", "curves.png", "results/ablations/curves.png"),
    "a sweep's table": ("ablate --table --out .", "table.md", ""),
}


@pytest.mark.parametrize("case", SCRIPTS)
def test_a_file_of_the_user_s_is_refused_before_work_begins(
    case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words, name, own = SCRIPTS[case]
    script, *options = words.split()
    theirs = Path(name)
    if theirs.suffix == ".png":
        Figure().savefig(theirs)  # whoever draws with Matplotlib has such files
    else:
        theirs.write_text('{"name": "mine", "machine": "EPYC", "settings": {}}\n', encoding="utf-8")  # as a run's
    before = theirs.read_bytes()
    main: Callable[..., object] = {"ablate": ablate, "benchmark": benchmark, "plateau": plateau}[script].main
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *options])
    monkeypatch.setattr(plateau, "run", lambda *_, **__: pytest.fail("work began"))
    monkeypatch.setattr(benchmark, "SECTIONS", {})
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 2
    assert f"{name} is there and not this script's own" in capsys.readouterr().err
    assert theirs.read_bytes() == before
    if own:  # what is kept here can be written anew
        mark = {"benchmark": '"quick"', "plateau": '"trial"' if "json" in own else png_mark("plateau.py")}
        check_output("--out", ROOT / own, mark.get(script, ablate.WRITTEN.get(name, "")))
    theirs.write_bytes(b"")  # as mktemp makes it
    check_output("--out", theirs, "a mark")
