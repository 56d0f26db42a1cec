"""Stochastic variational inference: the trainer, its actions, its checkpoints and its fast step."""
