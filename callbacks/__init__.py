"""Callbacks that look into the network and write what they see to TensorBoard and to PNG files."""

from callbacks.activation_stats import ActivationStats
from callbacks.base import Looking
from callbacks.calibration import Calibration
from callbacks.confusion_matrix import ConfusionMatrix
from callbacks.conv1_filters import Conv1Filters
from callbacks.embedding_projector import EmbeddingProjector
from callbacks.explanations import Explanations
from callbacks.nearest_neighbours import NearestNeighbours
from callbacks.overview import Overview
from callbacks.predictions import Predictions
from callbacks.top_losses import TopLosses
from callbacks.top_patches import TopPatches
from callbacks.training_health import TrainingHealth
from callbacks.whiten_conv1 import WhitenConv1 as WhitenConv1

# All that looks at a run, in this order: the key is its section in a config and the name of its file.
LOOKS: dict[str, type[Looking]] = {
    "conv1_filters": Conv1Filters,
    "nearest_neighbours": NearestNeighbours,
    "top_patches": TopPatches,
    "predictions": Predictions,
    "confusion_matrix": ConfusionMatrix,
    "top_losses": TopLosses,
    "calibration": Calibration,
    "activation_stats": ActivationStats,
    "embedding_projector": EmbeddingProjector,
    "explanations": Explanations,
    "overview": Overview,
    "training_health": TrainingHealth,
}
