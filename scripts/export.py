"""Take a trained network elsewhere: one file, with its preprocessing and class names.

python scripts/export.py --ckpt_path logs/alexnet/version_0/checkpoints/best.ckpt --format onnx
python scripts/export.py --ckpt_path best.ckpt --format pt2 --dtype float32 --output classifier.pt2

``onnx`` and ``pt2`` (of ``torch.export``) take RGB images ``(B, 3, H, W)`` as ``--dtype`` says, any number of any
size, and give probabilities ``(B, C)``, of one centre crop. Photos are reduced inside, uint8 to predict.py's bytes.
``safetensors`` has the weights by AlexNet's own names. Class names, and the numbers of the preprocessing, are in the
file's metadata as JSON. What comes out of the file is compared with what comes out of the network, for images of
several sizes, before it gets its name.
"""

from __future__ import annotations

from running.start import script

# isort: split
import argparse
import importlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from running.checkpoint import Checkpoint
from running.errors import ScriptParser, argument_errors, printable, reason, refuse
from running.image_classifier import ImageClassifier, network_arguments
from running.outputs import check_output, check_place
from torch import Tensor

from callbacks.checkpoints.files import write_whole
from datamodules import CIFAR10DataModule
from datamodules.preprocessing import SIZE, Preprocessing
from lightning_modules import AlexNetClassifier

PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "pt2": (), "safetensors": ("safetensors",)}
SOFTWARE = "software", "alexnet-cifar10/scripts/export.py"  # in the metadata, by which a file is known
INPUT, OUTPUT = "images", "probabilities"
ROUNDING = 1e-4  # of probabilities; float32 sums in another order differ by a hundredth of it
PHOTOS = (48, 64), (64, 48), (20, 20), (500, 375)  # heights and widths that it is tried on beside the data set's own
SHOWN = 100  # images of the test split that it is tried on

Run = Callable[[Tensor], Tensor]  # images to probabilities

# ---- formats: each gives the file's contents, and a way to run what was read from them ---------------------


def metadata(model: ImageClassifier, checkpoint: Checkpoint) -> dict[str, str]:
    """What a file says of itself, as JSON: class names, preprocessing, and what the network was made with."""
    how = model.preprocessing
    values = {
        "class_names": model.class_names,
        "mean": how.mean.tolist(),
        "std": how.std.tolist(),
        "crop_size": how.crop_size,
        "image_size": how.image_size,
        "input_scale": how.input_scale,
        "network": network_arguments(checkpoint),
    }
    return {SOFTWARE[0]: SOFTWARE[1], **{key: json.dumps(value) for key, value in values.items()}}


def to_pt2(model: ImageClassifier, about: dict[str, str], example: Tensor) -> tuple[bytes, Run]:
    """An exported program; ``torch.export.load`` needs nothing of this project."""
    buffer = io.BytesIO()
    torch.export.save(_program(model, example), buffer, extra_files=about)
    program = torch.export.load(io.BytesIO(buffer.getvalue())).module()
    return buffer.getvalue(), program


def to_onnx(model: ImageClassifier, about: dict[str, str], example: Tensor) -> tuple[bytes, Run]:
    """An ONNX model with its weights inside."""
    onnxruntime = importlib.import_module("onnxruntime")
    program = torch.onnx.export(
        _program(model, example), input_names=[INPUT], output_names=[OUTPUT], dynamo=True, verbose=False
    )
    assert program is not None
    proto = program.model_proto
    for key, value in about.items():
        proto.metadata_props.add(key=key, value=value)
    contents: bytes = proto.SerializeToString()
    session = onnxruntime.InferenceSession(contents, providers=["CPUExecutionProvider"])
    return contents, lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


def to_safetensors(model: ImageClassifier, about: dict[str, str], example: Tensor) -> tuple[bytes, Run]:
    """The weights by AlexNet's names; tried as a network that is made of the file alone."""
    safetensors = importlib.import_module("safetensors.torch")
    contents: bytes = safetensors.save({key: w.contiguous() for key, w in model.net.state_dict().items()}, about)
    header = json.loads(contents[8 : 8 + int.from_bytes(contents[:8], "little")])["__metadata__"]
    values = {key: json.loads(value) for key, value in header.items() if key != SOFTWARE[0]}
    net = AlexNetClassifier(**values["network"]).net
    net.load_state_dict(safetensors.load(contents))
    mean, std = (torch.tensor(values[key]) for key in ("mean", "std"))
    how = Preprocessing(mean, std, **{key: values[key] for key in ("crop_size", "image_size", "input_scale")})
    return contents, ImageClassifier(net, how, values["class_names"]).eval()


FORMATS: dict[str, Callable[[ImageClassifier, dict[str, str], Tensor], tuple[bytes, Run]]] = {
    "onnx": to_onnx,
    "pt2": to_pt2,
    "safetensors": to_safetensors,
}


def _program(model: ImageClassifier, example: Tensor) -> torch.export.ExportedProgram:
    sizes = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    return torch.export.export(model, (example,), dynamic_shapes=(sizes,))


# ---- does it do the same? ----------------------------------------------------------------------------------


def images_to_try(checkpoint: Checkpoint, root: str) -> tuple[list[Tensor], str]:
    """Batches of random images uint8, and of the test split's where it is at hand; what they are, for people."""
    stream = torch.Generator().manual_seed(0)
    random = [torch.randint(0, 256, (n, 3, SIZE, SIZE), generator=stream, dtype=torch.uint8) for n in (1, 3, 16)]
    random = [*(F.interpolate(random[1], size) for size in PHOTOS), *random]  # of large dots, which stay when reduced
    said = f"{sum(map(len, random))} random images of {len(PHOTOS) + 1} sizes"
    settings = {**checkpoint.settings["data"], "download": False}
    try:
        datamodule = CIFAR10DataModule(**settings, root=root)
        images = datamodule.images_in("test")[0]
    except (ValueError, OSError):  # no data here
        return random, said
    chosen = torch.linspace(0, len(images) - 1, min(SHOWN, len(images))).long()
    return [*random, images[chosen]], f"{said}, {len(chosen)} of {datamodule.description}"


@torch.no_grad()
def difference(model: Run, run: Run, batches: Sequence[Tensor]) -> float:
    """The largest between the probabilities of the two; infinite where one is NaN."""
    worst = 0.0
    for images in batches:
        apart = (model(images) - run(images)).abs().max()
        worst = max(worst, float(apart.nan_to_num(nan=torch.inf)))
    return worst


# ---- the command line --------------------------------------------------------------------------------------


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked before anything that takes time."""
    parser = ScriptParser("export.py", __doc__)
    parser.add_argument("--ckpt_path", type=Path, required=True, help="a checkpoint that fit.py wrote")
    parser.add_argument("--format", choices=FORMATS, required=True, help="of the file")
    parser.add_argument("--output", type=Path, help="the file; left out, alexnet.onnx or the like")
    parser.add_argument(
        "--dtype", choices=("uint8", "float32"), default="uint8", help="what onnx and pt2 take; float32 in [0, 1]"
    )
    parser.add_argument("--root", default="data", help="folder with CIFAR-10, to try the file on its test images")
    options = parser.parse_args(words)
    options.output = options.output or Path(f"alexnet.{options.format}")
    check_place(parser, "--output", options.output, f".{options.format}")
    for package in PACKAGES[options.format]:
        try:
            importlib.import_module(package)
        except ImportError:
            wrong = f"--format: {options.format}, which needs {package}, expected it installed"
            refuse(f"{wrong}. Install it: pip install -e '.[export]'")
    return options


def main(words: Sequence[str] | None = None) -> None:
    """Write the file that the command line asks for; None takes it from ``sys.argv``."""
    options = parse(words)
    with argument_errors(""):
        check_output("--output", options.output, SOFTWARE[1], [options.ckpt_path])
        checkpoint = Checkpoint.read(options.ckpt_path)
        model = ImageClassifier.of(checkpoint)
    batches, tried = images_to_try(checkpoint, options.root)
    if options.dtype == "float32":
        batches = [images.float() / 255 for images in batches]
    example = batches[0]  # of sides unlike each other and 32, which thus stay open
    logging.disable(logging.WARNING)  # the exporters talk of their own insides
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        contents, run = FORMATS[options.format](model, metadata(model, checkpoint), example)
        apart = difference(model, run, batches)
    logging.disable(logging.NOTSET)
    if not apart <= ROUNDING:
        wrong = f"its probabilities differ from the network's by {apart:.2g}, expected at most {ROUNDING:g}"
        refuse(f"{options.output}: {wrong}. Nothing was written: choose another format.", status=1)
    try:
        write_whole(options.output, contents)
    except OSError as error:
        refuse(f"{options.output}: can't be written ({reason(error)}). Choose another place.", status=1)
    print(printable(f"written: {options.output}, {len(contents) / 1e6:,.0f} MB"))
    print(printable(f"tried on {tried}: probabilities differ by {apart:.1g} at most"))


if __name__ == "__main__":
    with script():
        main()
