"""Boundary-aware semantic segmentation in JAX: HRNet, OCR and the InverseForm loss."""

__version__ = '0.1.0'
