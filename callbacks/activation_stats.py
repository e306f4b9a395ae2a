"""ActivationStats: whether every layer is alive: dead ReLUs, and how large activations are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from lightning import LightningModule, Trainer
from torch import Tensor, nn

from callbacks import base
from callbacks.base import EveryNEpochs, Stage

LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7")


class LayerStats(NamedTuple):
    """What a layer puts out on some images, after the activation function.

    A channel (of a fully connected layer: a unit) is dead if it is zero on every image at every position: with a ReLU,
    no image of these teaches it any more.
    """

    dead: float  # the fraction of channels, in [0, 1]
    scale: float  # root of the mean square over all activations


def layer_stats(activations: Tensor) -> LayerStats:
    """Measure a layer's activations ``(B, C, ...)``, after the activation function."""
    values = activations.detach().float()
    alive = (values != 0).any(dim=(0, *range(2, values.ndim)))  # (C,); NaN is alive, and shows in the scale
    return LayerStats(1 - alive.float().mean().item(), values.square().mean().sqrt().item())


@contextmanager
def forward_hooks(network: nn.Module, layers: Sequence[str], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Within the block, ``see(name, output)`` at every eager call of a layer, before the activation function.

    Layers are children of the network of these names; those that don't exist are left out.
    """
    children = dict(network.named_children())
    handles = [
        children[name].register_forward_hook(lambda module, inputs, output, name=name: see(name, output))
        for name in layers
        if name in children
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def activation_function(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """What follows each of the network's ``LAYERS``: tanh if it has an ``nn.Tanh``; else it is taken for ReLU."""
    return torch.tanh if any(isinstance(module, nn.Tanh) for module in network.modules()) else torch.relu


def measure(network: nn.Module, run: Callable[[], Any]) -> dict[str, LayerStats]:
    """Measure the network's ``LAYERS`` while ``run`` runs images through it, eagerly.

    Returns:
        For each layer that was called; the newest call counts.
    """
    found: dict[str, LayerStats] = {}
    activate = activation_function(network)

    def keep(name: str, output: Tensor) -> None:
        # The layer's output, before an activation function that works in place: so it is applied to a copy.
        found[name] = layer_stats(activate(output))

    with forward_hooks(network, LAYERS, keep):
        run()
    return found


class ActivationStats(EveryNEpochs):
    """Log each layer's dead units and activation scale, on a fixed batch of validation images.

    ``dead/conv1`` is the fraction of channels that are zero on all of these images, ``activation_scale/conv1`` the root
    mean square; so for conv1 to conv5, fc6 and fc7, in evaluation mode (no dropout).

    Args:
        every_n_epochs: 1 measures before the first step and after every epoch; 0 only at the start and at the end.
        num_images: The same in the whole run, spread evenly over the validation images.
        enabled: False switches the callback off.
    """

    of_datamodule = ("query_dataloader",)
    of_model = ("net", "embed")

    def __init__(self, every_n_epochs: int = 1, num_images: int = 32, enabled: bool = True) -> None:
        super().__init__(every_n_epochs, enabled)
        base.check_at_least(1, num_images=num_images)
        self.num_images = num_images

    def look(self, trainer: Trainer, pl_module: LightningModule, epochs: int, stage: Stage) -> None:
        model = base.model_of(pl_module)
        with base.looking(pl_module):
            fetched = base.evenly_spaced_images(trainer, stage, self.num_images)
            if fetched is None:
                self.warn("no validation images to measure on.")
                return
            # embed() runs the layers themselves: a compiled network would pass by their hooks.
            stats = measure(model.net, lambda: base.forward(trainer, model.embed, fetched[0]))
        values = {f"dead/{name}": layer.dead for name, layer in stats.items()}
        values |= {f"activation_scale/{name}": layer.scale for name, layer in stats.items()}
        if values:
            base.write_scalars(trainer, values)
