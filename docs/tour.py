# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The network of 2012: a tour
#
# AlexNet (Krizhevsky, Sutskever and Hinton 2012, *ImageNet Classification with Deep Convolutional Neural Networks*),
# from the images that go in to what a trained one sees in them. Every heading names the section of the paper that
# it is about. You need some Python and a little PyTorch, and a quarter of an hour to read.
#
# To run it, two or three minutes on two cores, without a GPU or a download:
#
# ```
# pip install -e ".[explain]" jupyterlab && jupyter lab docs/tour.ipynb
# ```

# %%
import logging
import warnings

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from IPython.display import display
from lightning import Callback, Trainer, seed_everything
from PIL import Image, ImageOps
from torch import nn
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

from callbacks.pure.filter_grid import filter_grid
from callbacks.pure.heat import grad_cam, occlusion
from callbacks.pure.heat_panel import heat_panel
from callbacks.pure.knn import nearest_neighbours, retrieval_precision
from callbacks.pure.patch_panel import patch_panel
from callbacks.pure.prediction_panel import prediction_panel
from callbacks.pure.receptive_field import crops, receptive_fields
from callbacks.pure.retrieval_panel import retrieval_panel
from callbacks.pure.strongest import nothing_strong, strongest
from datamodules import CIFAR10DataModule
from datamodules.augment import crop_and_flip
from datamodules.pca_lighting import pca_lighting
from lightning_modules import AlexNet, AlexNetClassifier, LocalResponseNorm

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # which devices there are, and tips
warnings.filterwarnings("ignore", ".*(many workers|IProgress|LeafSpec).*")  # of no use here
seed_everything(0, verbose=False)


def show(picture, zoom=1):
    """Show a picture `(3, H, W)`, uint8 or float in [0, 1]."""
    image = ImageOps.scale(to_pil_image(picture), zoom, Image.Resampling.BOX)
    display(image, include=["image/jpeg"])  # half of a PNG's bytes


# %% [markdown]
# ## The images (section 2)
#
# The paper has 1.2 million photographs of 1,000 classes. We take 2,000 images of *shapes10*, ten classes of shapes
# and textures that this project draws itself: small enough to train on while you read. All else is the same with
# CIFAR-10; say `source="cifar10", root="../data"` below.
#
# A loader gives `images, targets`, as the network takes them: enlarged to 48 pixels and "centered", less the mean
# colour of the training set. (The paper stops there; we also divide by the standard deviation.) `to_rgb` leads back.

# %%
data = CIFAR10DataModule(
    source="shapes10", subset_size=2000, val_size=500, image_size=48, crop_size=32, crop_padding=4, batch_size=32
)
data.setup("fit")
images, targets = next(iter(data.val_dataloader()))
print("images ", tuple(images.shape), images.dtype, f"mean {images.mean():.2f}, standard deviation {images.std():.2f}")
print("targets", tuple(targets.shape), targets.dtype)
print(*(data.class_names[target] for target in targets[:10]), sep=", ")
show(make_grid(data.to_rgb(images[:10]), nrow=10, pad_value=1))

# %% [markdown]
# ## More images from the same ones (section 4.1)
#
# A network with 60 million weights learns 1.2 million images by heart. So it never sees the same one twice:
# each time, another part of the image is cut out, and half of them are mirrored. Eight draws of one image, shifted by
# up to 4 pixels:

# %%
square = data.images_in("train")[0][data.split.train[3]]  # (3, 32, 32) uint8
top, left = torch.randint(0, 9, (2, 8))
flip = torch.rand(8) < 0.5
shifted = crop_and_flip(square.expand(8, -1, -1, -1), top, left, flip, 32, 4)
show(make_grid(shifted, nrow=8, pad_value=255), zoom=2)

# %% [markdown]
# The second trick is *lighting*: a thing stays the same thing in brighter or warmer light. Over all pixels of the
# training set, the colours' principal components are three axes $p_j$ with variances $\lambda_j$, the first from dark
# to bright, the others from one colour to another. Each time an image is used,
#
# $$\alpha_1\sqrt{\lambda_1}\,p_1 + \alpha_2\sqrt{\lambda_2}\,p_2 + \alpha_3\sqrt{\lambda_3}\,p_3$$
#
# is added to all its pixels, with $\alpha_j$ drawn from $N(0, 0.1^2)$. In the paper this gave more than one point of
# accuracy. Below, a row for each axis, with alpha from -0.6 to 0.6; two draws in three lie within the three in the
# middle. (Photographs differ in brightness far more than in colour: CIFAR-10's standard deviations are 0.42, 0.11 and
# 0.05.)

# %%
_, _, eigvecs, eigvals = data.statistics
print("standard deviations along the three axes:", [round(value, 3) for value in eigvals.sqrt().tolist()])
alphas = torch.zeros(3, 13, 3)
for axis in range(3):
    alphas[axis, :, axis] = torch.linspace(-0.6, 0.6, 13)
lit = pca_lighting((square / 255).expand(39, -1, -1, -1), eigvecs, eigvals, alphas.flatten(0, 1))
show(make_grid(lit.clamp(0, 1), nrow=13, pad_value=1), zoom=2)

# %% [markdown]
# ## Eight layers (section 3.5, Figure 2)
#
# Five convolutions look for patterns, each over a larger part of the image than the one before; three fully connected
# layers make a decision of what was found. Here is the paper's own network, for 224 pixels and 1,000 classes, run one
# layer at a time. (With 224 pixels conv1's 11x11 squares, 4 pixels apart, don't come out even: three more rows
# and columns of zeros are needed, which the paper does not mention.)

# %%
net = AlexNet(num_classes=1000, image_size=224).eval()
x = F.pad(torch.randn(1, 3, 224, 224), (0, net.padding, 0, net.padding))
print(f"{'':8}{'output':20}{'weight':20}{'parameters':>12}")
for name, layer in net.named_children():
    x = layer(x.flatten(1) if name == "fc6" else x)
    weight = str(tuple(layer.weight.shape)) if hasattr(layer, "weight") else ""
    print(f"{name:8}{tuple(x.shape)!s:20}{weight:20}{sum(p.numel() for p in layer.parameters()):12,}")
print(f"{sum(p.numel() for p in net.parameters()):,} parameters: the abstract's 60 million")

# %% [markdown]
# Read it from top to bottom: the maps become smaller, 55, 27, 13, 6, and there are more of them, 96, 256, 384.
# conv1 has 96 filters of 11x11 pixels and 3 colours. Nearly all parameters are in fc6 and fc7, whose 4096 numbers are
# what the network knows of an image before it names it.
#
# ## ReLU (section 3.1)
#
# What comes out of a layer goes through $\max(0, x)$. Before 2012 it was usually $\tanh(x)$, which is flat where
# $x$ is large: there hardly any gradient comes back, and learning is slow. With ReLUs, a network in Figure 1 gets to
# 25 % training error in a sixth of the epochs.

# %%
x = torch.tensor([-2.0, 0.5, 2.0, 5.0], requires_grad=True)
for activation in (nn.Tanh(), nn.ReLU()):
    (gradient,) = torch.autograd.grad(activation(x).sum(), x)
    print(f"{activation!s:7} gradient at {x.tolist()}: {[round(value, 4) for value in gradient.tolist()]}")

# %% [markdown]
# ## Two groups (section 3.2)
#
# The network did not fit into the 3 GB of one GTX 580, so it was cut in two. Each GPU has half of every layer's
# channels, and conv2, conv4 and conv5 see only those on their own: conv2's filters are 5x5x**48**, not 96. In conv3
# and the fully connected layers the two talk. Take the first 48 channels away, and what the second GPU computes in
# conv2 is as before:

# %%
x = torch.randn(1, 96, 27, 27)
before = net.conv2(x)
x[:, :48] = 0
changed = (net.conv2(x) != before).any(dim=3).any(dim=2)[0]  # (256,)
print(f"conv2: {changed[:128].sum()} of GPU 1's 128 channels change, {changed[128:].sum()} of GPU 2's")

# %% [markdown]
# ## Local response normalization (section 3.3)
#
# Where one filter responds strongly, its neighbours are turned down, as neurons do to each other ("lateral
# inhibition"). With $a_i$ the output of filter $i$ at a position, after the ReLU, and $n = 5$ neighbours:
#
# $$b_i = a_i \Big/ \Big(k + \alpha \sum_{j=i-n/2}^{i+n/2} a_j^2\Big)^\beta$$
#
# with $k = 2$, $\alpha = 10^{-4}$ and $\beta = 0.75$. It is one line, and the project's faster module gives the same:

# %%
a = torch.full((11,), 10.0)
a[5] = 300  # one filter of eleven responds strongly
b = torch.stack([a[i] / (2 + 1e-4 * (a[max(0, i - 2) : i + 3] ** 2).sum()) ** 0.75 for i in range(11)])
module = LocalResponseNorm(size=5, alpha=1e-4, beta=0.75, k=2.0)
difference = (module(a.view(1, 11, 1, 1)).flatten() - b).abs().max()
print(f"largest difference from the module: {difference:.0e}, of values up to {b.max():.0f}")

plt.figure(figsize=(6, 2.2))
plt.bar(range(11), b / a)
plt.xlabel("filter (the one that responds strongly is number 5)")
plt.ylabel("b / a")
plt.show()

# %% [markdown]
# With the paper's inputs of 0 to 255 responses are this large. With ours, of standard deviation 1, the sum counts for
# little and LRN is close to dividing by $2^{0.75}$. Later networks leave it out.
#
# ## Overlapping pooling (section 3.4)
#
# Pooling keeps the largest value of a window. Until then windows lay side by side, 2x2 with stride 2; here they
# are 3x3 with stride 2, so that neighbours share a row or column. The maps come out equally large; the error
# is 0.4 points lower, and overfitting a little harder, says the paper.

# %%
x = torch.zeros(1, 1, 8, 8)
x[0, 0, 2, 2] = 1  # one pixel that responds
overlapping, side_by_side = nn.MaxPool2d(3, 2, ceil_mode=True)(x), nn.MaxPool2d(2, 2)(x)
print("3x3, stride 2:", overlapping[0, 0].int().tolist())
print("2x2, stride 2:", side_by_side[0, 0].int().tolist())

# %% [markdown]
# ## Dropout (section 4.2)
#
# In training, each of fc6's and fc7's outputs is set to 0 half of the time, drawn anew for each image. A neuron can't
# rely on others being there, so each has to learn something that is useful by itself. In the test all are there.
# PyTorch doubles the rest in training; the paper halves them in the test, which comes to the same.

# %%
dropout = nn.Dropout(0.5)
print("training:", dropout.train()(torch.ones(12)).tolist())
print("test:    ", dropout.eval()(torch.ones(12)).tolist())

# %% [markdown]
# ## Training (section 5)
#
# Stochastic gradient descent with momentum 0.9 and weight decay 0.0005, as in the paper, whose 90 epochs took six
# days on two GPUs. For two minutes on a CPU we take images of 48 pixels with conv1's stride at 2, batches of 32, and
# two newer things: He's initialisation in place of $N(0, 0.01)$, with which a short run does not get off the ground
# ([why](plateau.md)), and a learning rate that goes up and down once.
#
# `AlexNetClassifier` is the `LightningModule` around the network, and the `Trainer` does the loop. A callback keeps
# what is measured:


# %%
class Curves(Callback):
    """Keep the loss of every step and the metrics of every epoch."""

    def __init__(self):
        self.losses, self.epochs = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())

    def on_train_epoch_end(self, trainer, pl_module):
        self.epochs.append({name: value.item() for name, value in trainer.callback_metrics.items()})
        print(f"epoch {len(self.epochs)}: {self.epochs[-1]['val/top1']:.1%} of the validation images right")


model = AlexNetClassifier(image_size=48, conv1_stride=2, init="fast", lr=0.01, schedule="one_cycle")
untrained = model.net.conv1.weight.detach().clone()  # to compare with later
curves = Curves()
trainer = Trainer(
    max_epochs=5,
    accelerator="cpu",
    callbacks=[curves],
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    num_sanity_val_steps=0,
)
trainer.fit(model, data)

# %% [markdown]
# A network that knows nothing gives every class 1/10, a loss of $\ln 10 = 2.303$: there it stands for a while, until
# conv1 has found something to see. Training accuracy is below validation's here, because training images are shifted
# and lit, half of fc6 and fc7 is missing, and it is the mean over an epoch in which the network was still learning.

# %%
figure, (left_axis, right_axis) = plt.subplots(1, 2, figsize=(9, 3))
left_axis.plot(curves.losses, linewidth=1)
left_axis.axhline(torch.tensor(10.0).log(), color="grey", linestyle="--", label="ln 10: knows nothing")
left_axis.set(xlabel="step", ylabel="training loss")
left_axis.legend()
for stage in ("train", "val"):
    accuracies = [100 * epoch[f"{stage}/top1"] for epoch in curves.epochs]
    right_axis.plot(range(1, 1 + len(accuracies)), accuracies, marker="o", label=stage)
right_axis.set(xlabel="epoch", ylabel="right, %", xticks=range(1, 1 + len(curves.epochs)), ylim=(0, 100))
right_axis.legend()
figure.tight_layout()
plt.show()

# %% [markdown]
# The test images have played no part so far, neither in training nor in choosing anything. They are looked at once:

# %%
(tested,) = trainer.test(model, data, verbose=False)
print(f"test top-1 {tested['test/top1']:.1%}, top-5 {tested['test/top5']:.1%}; by chance 10.0% and 50.0%")

# %% [markdown]
# ## What conv1 has learned (section 6.1, Figure 3)
#
# A filter of 11x11x3 numbers can be drawn as an image of what it looks for. At first they are noise.

# %%
show(filter_grid(untrained, groups=2, title="conv1 before training"))
show(filter_grid(model.net.conv1.weight.detach(), groups=2, title="conv1 after five epochs"))

# %% [markdown]
# Edges and stripes of some directions, and blobs of colour: nobody asked for them, they are what helps to tell
# the classes apart. In the paper's Figure 3 they are sharper after 90 epochs, and those of one GPU are mostly without
# colour, those of the other mostly coloured. [These](filters.png) are of a long run on CIFAR-10.
#
# ## What it says (section 6.1, Figure 4, left)
#
# The softmax of fc8's outputs is a probability for each class. A good network is wrong in a sensible way: what is
# likely beside the right class looks like it.

# %%
model.eval()  # no dropout from here on
images, targets = next(iter(data.test_dataloader()))
with torch.no_grad():
    probabilities = model.log_probabilities(images).exp()
rgb = data.to_rgb(images)
show(prediction_panel(rgb[:8], probabilities[:8], targets[:8].tolist(), data.class_names, "test images"))

# %% [markdown]
# ## What looks alike to it (section 6.1, Figure 4, right)
#
# fc7's 4096 numbers describe an image. If two images' lie near each other, by their Euclidean distance, the network
# finds the images alike. Here are test images and the training images nearest to them; a green frame is the same class.

# %%
with torch.no_grad():
    batches = [(batch, labels, model.embed(batch)) for batch, labels in data.gallery_dataloader()]
    gallery, labels, features = (torch.cat(parts) for parts in zip(*batches, strict=True))
    distances, places = nearest_neighbours(model.embed(images), features, k=6)
show(
    retrieval_panel(
        rgb[:4],
        data.to_rgb(gallery)[places[:4]],
        targets[:4].tolist(),
        labels[places[:4]].tolist(),
        distances[:4].tolist(),
        data.class_names,
        "test images, and the training images nearest to them in fc7",
    )
)

# %% [markdown]
# This is not just likeness of pixels, "the retrieved training images are generally not close in L2 to the query images
# in the first column". Of the six nearest, how many are of the right class?

# %%
_, by_pixels = nearest_neighbours(images.flatten(1), gallery.flatten(1), k=6)
for name, found in (("pixels", by_pixels), ("fc7", places)):
    print(f"nearest in {name:7} {retrieval_precision(labels[found], targets, ks=[6])[6]:.0%} of the same class")

# %% [markdown]
# ## What a unit waits for (Zeiler and Fergus 2014)
#
# The filters of conv2 and above can't be drawn: their inputs are no colours but other filters' responses. But one can
# look for the images that excite a unit most, and cut out what it sees, its *receptive field*. For every 32nd of
# conv2's 256 units, the patches of nine training images and the strongest response; grey lies beyond the image's edge:

# %%
field = receptive_fields(model.net)["conv2"]
print(f"a unit of conv2 sees {field.size}x{field.size} pixels")
seen = []
handle = model.net.relu2.register_forward_hook(lambda layer, inputs, output: seen.append(output))
found = nothing_strong(units=256, k=9)
for numbers in torch.arange(len(gallery)).split(100):
    with torch.no_grad():
        model(gallery[numbers])
    found = strongest(seen.pop(), numbers, found)
handle.remove()

units = range(0, 256, 32)
patches = [
    data.to_rgb(crops(gallery[found.images[u]], field, found.rows[u].tolist(), found.columns[u].tolist()))
    for u in units
]
show(patch_panel(patches, None, units, found.values[::32, 0].tolist(), "what excites units of conv2"))

# %% [markdown]
# ## Where it looks (Selvaraju et al. 2017; Zeiler and Fergus 2014)
#
# *Grad-CAM* adds up conv5's maps, each by how much the answer's score rises with it. *Occlusion* covers a square of the
# image at a time and sees how far the score falls. Bright is what speaks for the answer that was given: is it
# the shape, or is it something in the background?

# %%
shown = images[:6]
with torch.no_grad():
    said = model.log_probabilities(shown).max(1)
try:
    heats = {
        "Grad-CAM": grad_cam(model.log_probabilities, model.net, shown, said.indices),
        "occlusion": occlusion(model.log_probabilities, shown, said.indices),
    }
except ImportError:
    print('This needs captum: pip install -e ".[explain]"')
else:
    answers = list(zip(said.indices.tolist(), said.values.exp().tolist(), strict=True))
    show(heat_panel(rgb[:6], heats, answers, targets[:6].tolist(), data.class_names, "test images"))

# %% [markdown]
# ## Where to go on
#
# - **Change something** and run it again: `AlexNetClassifier(..., activation="tanh")`, `lrn=False`, `groups=1`,
#   `dropout=0.0`, `init="paper"`. Which of them can you tell from another seed?
# - **The whole experiment**: `python scripts/fit.py` trains on CIFAR-10, keeps checkpoints, and shows what you have
#   seen here in TensorBoard while it goes on. [README](../README.md).
# - **The paper's claims**, each put to the test over several seeds: `python scripts/ablate.py`, and what came out in
#   the README.
# - **Your own pictures**: `python scripts/predict.py --ckpt_path ... cat.jpg`.
# - **The code**: `lightning_modules/alexnet.py` has every number's section of the paper;
#   [how it fits together](architecture.md).
