"""The judge and the metrics: the only code that compares a reconstruction with the private images."""

from benchmark.evaluation.judge import Sample, judge
from benchmark.evaluation.metric import Direction, Level, Measure, Metric
from benchmark.evaluation.metrics import METRICS

__all__ = ["METRICS", "Direction", "Level", "Measure", "Metric", "Sample", "judge"]
