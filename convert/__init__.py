"""PyTorch checkpoints to our weights and back; `python -m convert --help`."""

from convert.mapping import backbone_from_torch, from_torch, to_torch

__all__ = ['backbone_from_torch', 'from_torch', 'to_torch']
