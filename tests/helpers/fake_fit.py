"""fit.py's part in a sweep, in a few milliseconds and without torch: it writes what fit.py would.

A file ``fail-tanh-1`` in the working folder makes that run fail; with ``hang-tanh-1`` it waits for a signal, saves and
stops, unless it goes on from a checkpoint; ``deaf-tanh-1`` has it take a second to stop; ``killed-tanh-1`` ends it as
a kill in its test would.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

words = sys.argv[1:]


def value(name: str) -> Any:
    given = [w.split("=", 1)[1] if "=" in w else words[i + 1] for i, w in enumerate(words) if w.split("=")[0] == name]
    return given[-1] if given else None


variant, seed, ckpt = Path(value("-c")).stem, int(value("--seed_everything")), value("--ckpt_path")
told = {"threads": os.environ.get("OMP_NUM_THREADS"), "gpu": os.environ.get("CUDA_VISIBLE_DEVICES")}
with open("calls.jsonl", "a", encoding="utf-8") as file:
    file.write(json.dumps({"variant": variant, "seed": seed, "words": words, **told}) + "\n")
folder = Path(value("--trainer.logger.init_args.save_dir"), value("--trainer.logger.init_args.name"))
before = len(list(folder.glob("version_*")))
version = folder / f"version_{before}"
checkpoints = version / "checkpoints"
checkpoints.mkdir(parents=True)


def asked(what: str) -> bool:
    return Path(f"{what}-{variant}-{seed}").exists()


def finish(**measured: Any) -> None:
    summary = {"data": "CIFAR-10", "epochs": 1, "images": 100, "val_images": 40, "test_images": 60, **measured}
    summary |= {"test_top5": 0.9, "test_loss": 1.0, "seconds": 61.0, "seed": seed, "machine": "a CPU", "versions": {}}
    summary["precision"] = "32-true"
    (version / "summary.json").write_text(json.dumps({**summary, "command": " ".join(words)}))


def stop(signum: int, frame: Any) -> None:
    time.sleep(asked("deaf"))
    (checkpoints / "last.ckpt").write_text("half")
    sys.exit(128 + signum)


if words[0] == "test":
    finish(test_top1=float(Path(ckpt).read_text(encoding="utf-8")) + 0.02)
    sys.exit()
if asked("fail"):
    print("error: --model.lr: nothing comes of it.")
    sys.exit(2)
if asked("hang") and not ckpt:
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    Path("hanging").write_text(str(os.getpid()), encoding="utf-8")
    time.sleep(60)
    sys.exit(1)
if asked("killed") and not ckpt:
    (checkpoints / "last.ckpt").write_text("whole")
    os.kill(os.getpid(), signal.SIGKILL)
top1 = {"baseline": 0.5, "tanh": 0.4}.get(variant, 0.45) + 0.01 * seed
(checkpoints / "best.ckpt").write_text(str(top1))
(checkpoints / "last.ckpt").write_text("last")
entry = {"epoch": 1, "train_top1": top1 / 3, "val_top1": top1 / 2}
finish(train_top1=top1 / 3, val_top1=top1, test_top1=top1, resumed=before, history=[entry])
