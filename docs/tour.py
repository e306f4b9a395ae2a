# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
# ---

# %% [markdown]
# # A tour
#
# From the images to what a trained network sees in them, with plain `images, targets` batches. On two cores
# of a laptop it takes a few minutes. It works on shapes10, ten classes of drawn shapes, which need no
# download; with CIFAR-10 in `data/` say `source="cifar10"` below. From a shell: `jupyter lab
# docs/tour.ipynb`, in the project's folder.

# %%
import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: threads that wait give way to other programs

import torch
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import TQDMProgressBar
from PIL import Image

from callbacks.pure.filter_grid import filter_grid
from callbacks.pure.heat_panel import heat_panel
from callbacks.pure.knn import nearest_neighbours
from callbacks.pure.prediction_panel import prediction_panel
from callbacks.pure.retrieval_panel import retrieval_panel
from datamodules import CIFAR10DataModule
from datamodules.pca_lighting import pca_lighting
from lightning_modules import AlexNet, AlexNetClassifier

seed_everything(0)


def show(picture: torch.Tensor) -> Image.Image:
    """A picture `(3, H, W)` uint8, as the notebook shows it."""
    return Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())


# %% [markdown]
# ## The images
#
# The DataModule keeps all images in memory, as bytes. Its loaders give batches as the network takes them:
# cropped, flipped, lit, normalised.

# %%
data = CIFAR10DataModule(
    source="shapes10", subset_size=2000, val_size=500, image_size=32, crop_size=32, crop_padding=4, batch_size=64
)
data.setup("fit")
images, targets = next(iter(data.train_dataloader()))
print(f"images {tuple(images.shape)} {images.dtype}, targets {tuple(targets.shape)}")

# %%
rgb = data.to_rgb(images[:16])  # back to [0, 1]
rows = rgb.unflatten(0, (2, 8)).permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)
show((255 * rows).to(torch.uint8)).resize((8 * 96, 2 * 96), Image.Resampling.NEAREST)

# %% [markdown]
# ## Lighting, section 4.1
#
# The colours of all pixels vary most along three axes. The paper adds multiples of them, drawn anew each time
# an image is used. Here an image with the first axis' multiple at -3, -1.5, 0, 1.5 and 3 standard deviations
# of the draw:

# %%
_, _, eigvecs, eigvals = data.statistics
print("standard deviations along the axes:", eigvals.sqrt().tolist())
image = data.images_in("train")[0][data.split.train[7]].float() / 255
alphas = torch.zeros(5, 3)
alphas[:, 0] = 0.1 * torch.tensor([-3, -1.5, 0, 1.5, 3])
lit = pca_lighting(image.expand(5, -1, -1, -1), eigvecs, eigvals, alphas).clamp(0, 1)
show((255 * lit.permute(1, 2, 0, 3).flatten(2)).to(torch.uint8)).resize((5 * 96, 96), Image.Resampling.NEAREST)

# %% [markdown]
# ## The network, layer by layer
#
# The paper's network takes 224 pixels; this one the same layers on 32, with conv1's stride at 2. `init="he"`
# is not the paper's: with the paper's a short run stays where it starts.

# %%
net = AlexNet(image_size=32, conv1_stride=2, init="he")
handles = [
    layer.register_forward_hook(lambda layer, _, out, name=name: print(f"{name:6} {tuple(out.shape)!s:20} {layer}"))
    for name, layer in net.named_children()
]
with torch.no_grad():
    net.eval()(images[:1])
for handle in handles:
    handle.remove()
print(f"{sum(p.numel() for p in net.parameters()):,} parameters")

# %% [markdown]
# ## Training
#
# `AlexNetClassifier` is the LightningModule around it: cross entropy, top-1 and top-5, SGD. This is what
# `fit.py` runs, less its checkpoints and pictures.

# %%
model = AlexNetClassifier(image_size=32, conv1_stride=2, init="he", lr=0.015, schedule="one_cycle")
trainer = Trainer(
    max_epochs=5,
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_model_summary=False,
    num_sanity_val_steps=0,
    callbacks=[TQDMProgressBar(refresh_rate=0)],
)
trainer.fit(model, data)
(tested,) = trainer.test(model, data, verbose=False)
print({name: round(value, 3) for name, value in tested.items()})

# %% [markdown]
# ## What it says of images it has not seen
#
# The left half of the paper's Figure 4.

# %%
model.eval()
images, targets = next(iter(data.test_dataloader()))
with torch.no_grad():
    probabilities = model.log_probabilities(images[:8]).exp()
show(prediction_panel(data.to_rgb(images[:8]), probabilities, targets[:8].tolist(), data.class_names, "test images"))

# %% [markdown]
# ## The filters of conv1
#
# Figure 3. After so short a run they are little more than the noise they began as; `docs/filters.png` shows
# those of a long one.

# %%
show(filter_grid(model.net.conv1.weight.detach(), groups=2, title="conv1 after five epochs"))

# %% [markdown]
# ## The nearest training images
#
# The right half of Figure 4: two images are alike if their fc7 activations are near each other.

# %%
with torch.no_grad():
    gallery = [(model.embed(batch), labels, data.to_rgb(batch)) for batch, labels in data.gallery_dataloader()]
    features, labels, pictures = (torch.cat(parts) for parts in zip(*gallery, strict=True))
    distances, places = nearest_neighbours(model.embed(images[:4]), features, k=6)
show(
    retrieval_panel(
        data.to_rgb(images[:4]),
        pictures[places],
        targets[:4].tolist(),
        labels[places].tolist(),
        distances.tolist(),
        data.class_names,
        "test images, and the training images nearest to them",
    )
)

# %% [markdown]
# ## Where it looks
#
# Grad-CAM and occlusion, by captum (`pip install -e ".[explain]"`): bright is what speaks for the label that
# was said.

# %%
from callbacks.pure.heat import grad_cam, occlusion

with torch.no_grad():
    said = model.log_probabilities(images[:8]).max(1)
heats = {
    "Grad-CAM": grad_cam(model.log_probabilities, model.net, images[:8], said.indices),
    "occlusion": occlusion(model.log_probabilities, images[:8], said.indices),
}
answers = list(zip(said.indices.tolist(), said.values.exp().tolist(), strict=True))
show(heat_panel(data.to_rgb(images[:8]), heats, answers, targets[:8].tolist(), data.class_names, "test images"))

# %% [markdown]
# ## And on
#
# `python scripts/fit.py` does this with CIFAR-10, keeps checkpoints and shows it all in TensorBoard;
# `scripts/predict.py` asks a trained network of your own pictures; `scripts/ablate.py` puts the paper's
# claims to the test.
