"""AlexNet, the small networks of its paper, its local response normalization and the LightningModule around them."""

from lightning_modules.alexnet import AlexNet as AlexNet
from lightning_modules.classifier import AlexNetClassifier as AlexNetClassifier
from lightning_modules.cuda_convnet import CudaConvnet as CudaConvnet
from lightning_modules.lrn import LocalResponseNorm as LocalResponseNorm
