"""Callbacks that look into the network and write what they see to TensorBoard and to PNG files."""

from callbacks.activation_stats import ActivationStats as ActivationStats
from callbacks.confusion_matrix import ConfusionMatrix as ConfusionMatrix
from callbacks.conv1_filters import Conv1Filters as Conv1Filters
from callbacks.embedding_projector import EmbeddingProjector as EmbeddingProjector
from callbacks.nearest_neighbours import NearestNeighbours as NearestNeighbours
from callbacks.overview import Overview as Overview
from callbacks.predictions import Predictions as Predictions
from callbacks.training_health import TrainingHealth as TrainingHealth
