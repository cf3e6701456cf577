"""Reports of trainings and evaluations, each one HTML file that needs nothing beside it."""

from if_jax.html_report.evaluation import write_evaluation_report
from if_jax.html_report.samples import Gallery, picture_grid
from if_jax.html_report.training import (
  REPORT_FILE,
  Panel,
  is_reported,
  write_training_report,
)

__all__ = [
  'REPORT_FILE',
  'Gallery',
  'Panel',
  'is_reported',
  'picture_grid',
  'write_evaluation_report',
  'write_training_report',
]
