"""Guidance: denoisers made of denoisers, and samplers with a hook on the reverse kernel. Weight 1 is the plain model.

A guidance weight of 1 is the conditional model, 0 the unconditional one, for every method here. Those who write
``(1 + w) conditional - w unconditional`` mean weight 1 + w (``from_w``).
"""

from redraft.guidance.classifier import Classifier, classifier_guided, first_order_gain, gain, tilted
from redraft.guidance.classifier_free import Guided, cfg, cfg_posteriors, clean_vectors, mix
from redraft.guidance.control import Control, ends_at, plug_and_play, unlikely
from redraft.guidance.gradient import (
    Constraint,
    LogLikelihood,
    Steered,
    gradient_guided,
    negated,
    token_anywhere,
    token_at,
    token_everywhere,
    token_guided,
)
from redraft.guidance.hiding import Doubting, Unprompted, doubting, unprompted
from redraft.guidance.noisy import NoisyClassifier, log_likelihood, train_classifier
from redraft.guidance.rates import mixed_rates, rate_cfg, rate_guided, tilted_rates
from redraft.guidance.smc import Population, steer
from redraft.guidance.steering import Promise, Reward
from redraft.guidance.weights import Weight, from_temperature, from_w, interval, linear

__all__ = [
    "Classifier",
    "Constraint",
    "Control",
    "Doubting",
    "Guided",
    "LogLikelihood",
    "NoisyClassifier",
    "Population",
    "Promise",
    "Reward",
    "Steered",
    "Unprompted",
    "Weight",
    "cfg",
    "cfg_posteriors",
    "classifier_guided",
    "clean_vectors",
    "doubting",
    "ends_at",
    "first_order_gain",
    "from_temperature",
    "from_w",
    "gain",
    "gradient_guided",
    "interval",
    "linear",
    "log_likelihood",
    "mix",
    "mixed_rates",
    "negated",
    "plug_and_play",
    "rate_cfg",
    "rate_guided",
    "steer",
    "tilted",
    "tilted_rates",
    "token_anywhere",
    "token_at",
    "token_everywhere",
    "token_guided",
    "train_classifier",
    "unlikely",
    "unprompted",
]
