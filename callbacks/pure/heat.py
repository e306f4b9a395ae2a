"""Where in an image the evidence for a label lies, by captum, which is an extra: ``pip install -e ".[explain]"``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Forward = Callable[[Tensor], Tensor]  # images (N, 3, H, W), with 0 for grey, to a score (N, C) for each label


def grad_cam(forward: Forward, network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """The last convolution's maps, each weighted by how much the label's score rises with it: ``(N, H, W)``, 0 or more.

    Args:
        forward: Runs ``network``.
        network: Its last ``Conv2d`` is looked at; a compiled one is run as it was written.
        images: ``(N, 3, H, W)`` float.
        labels: ``(N,)`` int64.

    Returns:
        Float32 on the CPU, enlarged to the images' size.

    Source:
        Selvaraju et al. 2017.
    """
    from captum.attr import LayerAttribution, LayerGradCam

    last = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)][-1]
    # A compiled network would pass by the layer's hooks.
    with torch.enable_grad(), torch.compiler.set_stance("force_eager"):
        maps = LayerGradCam(forward, last).attribute(images, labels, relu_attributions=True)
    heat: Tensor = LayerAttribution.interpolate(maps.detach(), images.shape[-2:], "bilinear")
    return heat[:, 0].float().cpu()


def occlusion(forward: Forward, images: Tensor, labels: Tensor) -> Tensor:
    """How far the label's score falls where a square of a quarter of the image's width is grey: ``(N, H, W)``.

    The mean of all squares over a pixel, an eighth of the width apart. Arguments and result as for :func:`grad_cam`.

    Source:
        Zeiler and Fergus 2014, section 4.2.
    """
    from captum.attr import Occlusion

    size = images.shape[-1]
    window, stride = max(1, size // 4), max(1, size // 8)
    at_a_time = max(1, 64 // len(images))  # squares of each image: small batches take twice as long
    with torch.no_grad():
        heat: Tensor = Occlusion(forward).attribute(
            images, (3, window, window), stride, target=labels, perturbations_per_eval=at_a_time
        )
    return heat.mean(1).float().cpu()
