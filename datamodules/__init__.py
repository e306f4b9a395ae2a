"""CIFAR-10 and its stand-in shapes10: sources, subsets, augmentation and the DataModule."""

from datamodules.cifar10 import CIFAR10DataModule as CIFAR10DataModule
