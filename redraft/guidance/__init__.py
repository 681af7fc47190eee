"""Guidance: denoisers made of denoisers, and samplers with a hook on the reverse kernel. Weight 1 is the plain model.

A guidance weight of 1 is the conditional model, 0 the unconditional one, for every method here. Those who write
``(1 + w) conditional - w unconditional`` mean weight 1 + w (``from_w``).
"""

from redraft.guidance.classifier import Classifier, classifier_guided, first_order_gain, gain, tilted
from redraft.guidance.classifier_free import (
    Guided,
    Hiding,
    cfg,
    cfg_posteriors,
    clean_vectors,
    from_temperature,
    from_w,
    hiding,
    mix,
)
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
from redraft.guidance.noisy import NoisyClassifier, log_likelihood, train_classifier

__all__ = [
    "Classifier",
    "Constraint",
    "Control",
    "Guided",
    "Hiding",
    "LogLikelihood",
    "NoisyClassifier",
    "Steered",
    "cfg",
    "cfg_posteriors",
    "classifier_guided",
    "clean_vectors",
    "ends_at",
    "first_order_gain",
    "from_temperature",
    "from_w",
    "gain",
    "gradient_guided",
    "hiding",
    "log_likelihood",
    "mix",
    "negated",
    "plug_and_play",
    "tilted",
    "token_anywhere",
    "token_at",
    "token_everywhere",
    "token_guided",
    "train_classifier",
    "unlikely",
]
