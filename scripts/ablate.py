"""Put the paper's claims to the test: a baseline and variants of it, over seeds, into one table.

python scripts/ablate.py --seeds 4                        # all of configs/ablations
python scripts/ablate.py -c configs/quick_ablations.yaml  # for an evening: fewer images and epochs, three seeds
python scripts/ablate.py --seeds 3 --jobs 2 --only no_lrn tanh
python scripts/ablate.py --seeds 3 -- --data.subset_size 2000 --trainer.max_epochs 5
python scripts/ablate.py --seeds 3 --scheduler tcp://10.0.0.1:8786   # on the workers of a Dask cluster
python scripts/ablate.py --seeds 3 --dry-run              # the commands of what is to be run
python scripts/ablate.py --table                          # the table and the plots again, of what is under --out

Each run is a process of ``fit.py`` with a log folder of its own, and leaves ``<variant>-seed<n>/summary.json`` under
``--out``. What is there is not done again; a run that was stopped goes on from its own last checkpoint. Ctrl-C and
SIGTERM have the runs save and stop; the table is written all the same.

A cluster is ``dask scheduler`` and any number of ``dask worker tcp://HOST:PORT --nthreads 1``, which share the file
system with this machine; with ``--resources "GPU=1"`` each run gets a GPU. The runs of a worker that is lost are done
by another, from their last checkpoints. Ctrl-C has these runs save and stop too; a second one doesn't wait for them.
"""

from __future__ import annotations

from running.start import script

# isort: split
import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ablation.plan import CONFIGS, Job, choose, cost, plan, seconds_of, state_of
from ablation.plots import curves_figure, figure1
from ablation.sweep import Engine, Sweep, dask_engine, delete_logs, local_engine, local_gpus, lock
from ablation.table import RULE, comparable, compare, markdown, read_runs
from rich.console import Console
from rich.table import Column, Table
from running.errors import ScriptParser, printable, refuse
from running.outputs import check_output, png_mark, png_of

from callbacks.checkpoints.files import write_whole

# What is written of all runs, and by what it is known.
SOFTWARE = "ablate.py"
WRITTEN = {"table.md": "# Ablations", "curves.png": png_mark(SOFTWARE), "figure1.png": png_mark(SOFTWARE)}
# What every run is given by this script, and why --ckpt_path and the like can't be extra flags.
OURS = ("--seed_everything", "--trainer.logger", "--ckpt_path", "--config", "-c", "--print_config", "--help", "-h")


def parse(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options, and the extra flags after ``--``."""
    cut = list(words).index("--") if "--" in words else len(words)
    parser = ScriptParser("ablate.py", __doc__)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each, with seeds 0, 1, ... (default 3)")
    parser.add_argument("--jobs", type=int, help="runs at a time (default: one for each GPU, 1 without)")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="of a Dask cluster, to run there: tcp://HOST:PORT")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="variants of configs/ablations, or .yaml files")
    ours = CONFIGS / "ablations" / "baseline.yaml"
    parser.add_argument("-c", "--baseline", type=Path, default=ours, metavar="CONFIG", help="another baseline")
    parser.add_argument(
        "--out", type=Path, help="where figures are kept (default: results/ablations, or results/ and the name of -c)"
    )
    parser.add_argument("--logs", type=Path, help="where runs write (default: logs/ and the name of --out)")
    parser.add_argument("--redo", action="store_true", help="run again what is there with another recipe")
    parser.add_argument("--dry-run", action="store_true", help="only list the commands of what is to be run")
    parser.add_argument("--table", action="store_true", help="only write table and plots anew")
    options, flags = parser.parse_args(words[:cut]), list(words[cut + 1 :])
    for name in ("seeds", "jobs"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name}: {value}, expected 1 or more")
    if options.scheduler and options.jobs:
        parser.error(f"--jobs: {options.jobs}, expected none beside --scheduler, whose workers' --nthreads decide")
    for flag in flags:
        if any(flag.split("=")[0] == taken or flag.startswith(f"{taken}.") for taken in OURS):
            parser.error(f"{flag}: set by ablate.py, expected a setting. A config for --baseline or --only may hold it")
    named = "ablations" if options.baseline.resolve() == ours else options.baseline.stem
    options.out = options.out or Path("results", named)
    options.logs = options.logs or Path("logs") / options.out.resolve().name
    return options, flags


def main(words: Sequence[str] | None = None) -> None:
    """Plan, run, tell."""
    options, flags = parse(sys.argv[1:] if words is None else words)
    for name, mark in WRITTEN.items():
        check_output("--out", options.out / name, mark)
    try:
        if options.table:
            raise SystemExit(0 if tell(options.out) else 1)
        everything, wanted = (
            plan(choose(only, options.baseline), options.seeds, flags, options.out, options.logs)
            for only in (None, options.only)
        )
        # Those by path too tell what a run costs, or need the baseline's weights.
        everything += [job for job in wanted if job not in everything]
        states = {str(job): state_of(job) for job in wanted}
        todo = [job for job in wanted if states[str(job)] != "done"]
        other = [job for job in todo if states[str(job)] != "new"]
        if other and not options.redo:
            raise ValueError(states[str(other[0])])
        print(f"{len(wanted)} runs, {len(wanted) - len(todo)} of them done before, {len(todo)} to do", flush=True)
        gpus = local_gpus(flags, everything[0].recipe["settings"]) if todo and not options.scheduler else []
        jobs = options.jobs or max(1, len(gpus))
        if not options.scheduler and (said := cost(todo, seconds_of(everything), jobs)):
            print(said, flush=True)
        if options.dry_run:
            for job in todo:
                print(printable(job.shown_command))
            raise SystemExit(0)
        options.out.mkdir(parents=True, exist_ok=True)
        held = lock(options.logs / ".lock")
        if held is None:
            raise ValueError(f"{options.logs}: another ablate.py is at work, expected none. Choose another --out.")
        with held:
            for job in other:
                print(printable(f"again: {job}: {states[str(job)].split('. ')[0]}"), flush=True)
                job.summary.unlink(missing_ok=True)
                delete_logs(job.folder)
            engine = dask_engine(options.scheduler) if options.scheduler and todo else local_engine(jobs, gpus)
            status = run(engine, options.out, todo, everything)
    except (ValueError, OSError) as error:
        refuse(str(error))
    raise SystemExit(status)


def run(engine: Engine, out: Path, todo: list[Job], everything: list[Job]) -> int:
    """Do what is to be done, write the table, and return the exit status."""
    sweep = Sweep(engine, todo, everything)
    sweep.run()
    tell(out)
    if sweep.signals:
        left = len(todo) - len(sweep.kept)
        print(f"stopped with {left} runs to do: the same command goes on with them", file=sys.stderr)
        return 128 + sweep.signals[0]
    if sweep.failures:
        print(f"{len(sweep.failures)} of {len(todo)} runs failed:", *sweep.failures, sep="\n", file=sys.stderr)
    return int(bool(sweep.failures))


def tell(out: Path) -> bool:
    """Write table and plots of what is under ``out``, and print the table; False if there is nothing."""
    runs, lines = comparable(read_runs(out))
    for line in lines:
        print(printable(line), file=sys.stderr)
    if not runs:
        print(f"no runs under {out} yet", file=sys.stderr)
        return False
    shown = ("variant", "seeds", "val top-1", "test top-1", "difference ± standard error, points", "verdict")
    table = Table(Column(shown[0], no_wrap=True), *shown[1:])
    for row in compare(runs):
        table.add_row(*(row[name] for name in shown))
    write_whole(out / "table.md", f"# Ablations\n\n{markdown(runs)}")
    written = [out / "table.md"]
    for name, figure in (("curves.png", curves_figure(runs)), ("figure1.png", figure1(runs))):
        if figure is not None:
            write_whole(out / name, png_of(figure, SOFTWARE))
            written.append(out / name)
    console = Console(markup=False, emoji=False)  # a variant may be called b[exp a]
    console.print(table)
    console.print(RULE.replace("*", ""), style="dim", highlight=False)
    console.print("written:", ", ".join(printable(path) for path in written), soft_wrap=True)
    return True


if __name__ == "__main__":
    with script():
        main()
