"""TopPatches: what each convolution's units respond to: the patches of training images that excite them most."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn

from callbacks import base
from callbacks.activation_stats import activation_function, forward_hooks
from callbacks.base import EveryNEpochs, LookedAtModel, Stage
from callbacks.pure.choosing import evenly_spaced
from callbacks.pure.patch_panel import around_grey, patch_panel
from callbacks.pure.receptive_field import crops, receptive_fields
from callbacks.pure.strongest import Strongest, nothing_strong, strongest

LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5")
PATCHES = 9  # of each unit, as in the source

Deconvolve = Callable[[nn.Module, Tensor, list[int], list[int], list[int]], Tensor]


def find_strongest(trainer: Trainer, model: LookedAtModel, gallery: Any, places: Sequence[int]) -> dict[str, Strongest]:
    """Each unit's strongest activations on the images at these places of the gallery, for each of ``LAYERS``.

    What is kept is as large for any number of images. To be called inside ``looking``.
    """
    found: dict[str, Strongest] = {}
    activate = activation_function(model.net)

    def see(name: str, output: Tensor) -> None:
        before = found.get(name) or nothing_strong(output.shape[1], PATCHES, output.device)
        found[name] = strongest(activate(output), numbers.to(output.device), before)

    with forward_hooks(model.net, LAYERS, see):
        for numbers in torch.tensor(places).split(gallery.batch_size):
            images, _ = base.fetch(trainer, gallery, numbers.tolist())
            # embed() runs the layers themselves: a compiled network would pass by their hooks.
            base.forward(trainer, model.embed, images)
    return {name: Strongest(*(part.cpu() for part in each)) for name, each in found.items()}


class _Embedding(nn.Module):
    """The model's ``embed`` as a module, whose ReLUs captum looks for."""

    def __init__(self, model: LookedAtModel) -> None:
        super().__init__()
        self.net = model.net
        self.embed = model.embed

    def forward(self, images: Tensor) -> Tensor:
        return self.embed(images)


def deconvolution_of(model: LookedAtModel) -> Deconvolve | None:
    """Zeiler and Fergus' deconvolution, by captum; None where that is not installed.

    Of a layer, images ``(B, 3, H, W)``, and B units, rows and columns of the layer's maps, it makes what in each image
    excites its unit there: ``(B, 3, H, W)`` float32, of either sign. That is the gradient on its way down from the
    unit, of which each ReLU lets through what is above 0 in place of what was above 0 on the way up; max pooling leads
    it to where the maximum was, and local response normalization scales it as its own gradient does.
    """
    try:
        from captum.attr import NeuronDeconvolution
    except ImportError:
        return None

    def deconvolve(layer: nn.Module, images: Tensor, units: list[int], rows: list[int], columns: list[int]) -> Tensor:
        def at_positions(output: Tensor) -> Tensor:
            return output[torch.arange(len(output)), units, rows, columns]

        # A test runs in inference mode, whose tensors no gradient goes through: their copies are as others.
        with torch.inference_mode(False), torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # captum tells of the hooks that it sets, and takes away again
            inputs = images.clone().requires_grad_()
            signal: Tensor = NeuronDeconvolution(_Embedding(model), layer).attribute(inputs, at_positions)
            return signal.detach().float()

    return deconvolve


class TopPatches(EveryNEpochs):
    """Show for units of conv1 to conv5 the nine patches of training images that excite them most, at the end of test.

    A patch is all that the unit sees at the position, its receptive field; beyond the image's edge it has the mean
    colour, which is what the padding of the input is to the network. The nine are of nine images, not augmented. Of a
    layer those units are shown whose strongest activation, after the ReLU, is highest, in this order, under their
    numbers, from 0, and that activation.

    Where captum is installed (``pip install -e ".[explain]"``), a second block shows for conv2 and up what in each
    patch excites the unit: see :func:`deconvolution_of`. Grey is 0; each is drawn in its own scale.

    Each layer's picture goes to every logger as ``top_patches/conv1`` and to
    ``top_patches/conv1_epoch_010.png`` in the run's folder, where 10 is the number of epochs that the network was
    trained for.

    Args:
        every_n_epochs: 0 looks at the end of fit only; 5 also after every fifth epoch.
        after_fit: False leaves out the look at the end of fit, where a test of the best checkpoint follows anyway.
        num_images: Training images that are searched, spread evenly over all; by every process.
        units: How many are shown of each layer.
        deconvolution: False leaves out the second blocks, which take about as long as the search.
        enabled: False switches the callback off.

    Source:
        Zeiler and Fergus 2014, "Visualizing and Understanding Convolutional Networks", section 2.1 and Figure 2.
    """

    at_start = False
    at_test = True
    of_datamodule = ("gallery_dataloader", "to_rgb")
    of_model = ("net", "embed")

    def __init__(
        self,
        every_n_epochs: int = 0,
        after_fit: bool = True,
        num_images: int = 300,
        units: int = 8,
        deconvolution: bool = True,
        enabled: bool = True,
    ) -> None:
        super().__init__(every_n_epochs, enabled)
        base.check_at_least(1, num_images=num_images, units=units)
        self.at_end = after_fit
        self.num_images = num_images
        self.units = units
        self.deconvolution = deconvolution

    def look(self, trainer: Trainer, pl_module: LightningModule, epochs: int, stage: Stage) -> None:
        model, gallery = base.model_of(pl_module), base.datamodule_of(trainer).gallery_dataloader()
        places = evenly_spaced(len(gallery.dataset), self.num_images)
        if not places:
            self.warn("no training images to search.")
            return
        deconvolve = deconvolution_of(model) if self.deconvolution else None
        if self.deconvolution and not deconvolve:
            rank_zero_info("TopPatches: without captum there are no deconvolutions. Run pip install -e '.[explain]'.")
        with base.looking(pl_module):
            found = find_strongest(trainer, model, gallery, places)
            if not all(bool(layer.values.isfinite().all()) for layer in found.values()):
                self.warn(f"activations are NaN or infinite after epoch {epochs}: nothing shown.")
                return
            note = "The units with the strongest activations, which stand beside their numbers, and the patches\n"
            note += f"of {len(places):,} training images that excite each most. Grey lies beyond an image's edge."
            for name, layer in found.items():
                image = self._panel(trainer, model, name, layer, deconvolve, f"{name} after epoch {epochs}", note)
                if image is None:
                    self.warn(f"no unit of {name} responds to any of {len(places)} training images: none shown.")
                    continue
                base.write_image(trainer, f"top_patches/{name}", f"top_patches/{name}_epoch_{epochs:03d}.png", image)

    def _panel(
        self,
        trainer: Trainer,
        model: LookedAtModel,
        name: str,
        layer: Strongest,
        deconvolve: Deconvolve | None,
        title: str,
        note: str,
    ) -> Tensor | None:
        """A layer's picture; None where nothing excites any unit."""
        gallery = base.datamodule_of(trainer).gallery_dataloader()
        field, module = receptive_fields(model.net)[name], model.net.get_submodule(name)
        units = layer.values[:, 0].argsort(descending=True, stable=True)[: self.units].tolist()
        units = [unit for unit in units if layer.values[unit, 0] > 0]
        if not units:
            return None
        shown = layer.images[units] >= 0  # (units, PATCHES)
        of_each = torch.tensor(units)[:, None].expand_as(shown)
        spots = torch.stack([part[shown] for part in (of_each, *(part[units] for part in layer[1:]))])
        patches: list[Tensor] = []
        signals: list[Tensor] = []
        for spot in spots.split(gallery.batch_size, dim=1):
            numbers, places, rows, columns = spot.tolist()
            images, _ = base.fetch(trainer, gallery, places)
            patches.append(base.rgb_of(trainer, crops(images, field, rows, columns)))
            if deconvolve and name != "conv1":  # whose signals are its filters
                signal = deconvolve(module, images, numbers, rows, columns)
                signals.append(around_grey(crops(signal, field, rows, columns)))
        title += f": {len(units)} of {len(layer.values)} units"
        counts, values = shown.sum(1).tolist(), layer.values[units, 0].tolist()
        deconvolutions = torch.cat(signals).split(counts) if signals else None
        return patch_panel(torch.cat(patches).split(counts), deconvolutions, units, values, title, note)
