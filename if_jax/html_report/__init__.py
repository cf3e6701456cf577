"""Reports of trainings and evaluations, each one HTML file that needs nothing beside it."""

from if_jax.html_report.evaluation import write_evaluation_report
from if_jax.html_report.samples import Gallery, picture_strip
from if_jax.html_report.training import Panel, write_training_report

__all__ = [
  'Gallery',
  'Panel',
  'picture_strip',
  'write_evaluation_report',
  'write_training_report',
]
