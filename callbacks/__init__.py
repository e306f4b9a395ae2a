"""Callbacks that look into the network and write what they see to TensorBoard and to PNG files."""

from callbacks.conv1_filters import Conv1Filters as Conv1Filters
from callbacks.retrieval import NearestNeighbours as NearestNeighbours
