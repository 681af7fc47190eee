"""Measuring a model: likelihood with its estimator and error bar, and the variety of what it writes."""

from redraft.evaluation.answers import AnswerScore
from redraft.evaluation.comparison import Comparison, compare
from redraft.evaluation.generation import distinct_n, unigram_entropy, variety
from redraft.evaluation.likelihood import Likelihood, likelihood

__all__ = [
    "AnswerScore",
    "Comparison",
    "Likelihood",
    "compare",
    "distinct_n",
    "likelihood",
    "unigram_entropy",
    "variety",
]
