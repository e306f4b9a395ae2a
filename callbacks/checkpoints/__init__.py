"""Checkpoints: files that a crash leaves whole, Lightning's plugin for them, and what they say of a run."""
