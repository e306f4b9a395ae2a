"""Callbacks that look into the network and write what they see to TensorBoard and to PNG files."""

from callbacks.activations import ActivationStats as ActivationStats
from callbacks.confusion import ConfusionMatrix as ConfusionMatrix
from callbacks.conv1_filters import Conv1Filters as Conv1Filters
from callbacks.health import TrainingHealth as TrainingHealth
from callbacks.overview import Overview as Overview
from callbacks.predictions import Predictions as Predictions
from callbacks.projector import EmbeddingProjector as EmbeddingProjector
from callbacks.retrieval import NearestNeighbours as NearestNeighbours
