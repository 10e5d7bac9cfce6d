"""The judge and its metrics: the only code that compares a reconstruction with the truth."""

from benchmark.evaluation.judge import Sample, judge
from benchmark.evaluation.metric import Direction, Level, Measure, Metric
from benchmark.evaluation.metrics import METRICS

__all__ = ["METRICS", "Direction", "Level", "Measure", "Metric", "Sample", "judge"]
