"""Guidance: denoisers made of denoisers, and samplers with a hook on the reverse kernel. Weight 1 is the plain model.

A guidance weight of 1 is the conditional model, 0 the unconditional one, for every method here. Those who write
``(1 + w) conditional - w unconditional`` mean weight 1 + w.
"""

from redraft.guidance.classifier import Classifier, classifier_guided, first_order_gain, gain, tilted
from redraft.guidance.classifier_free import Guided, Hiding, cfg, cfg_posteriors, hiding, mix

__all__ = [
    "Classifier",
    "Guided",
    "Hiding",
    "cfg",
    "cfg_posteriors",
    "classifier_guided",
    "first_order_gain",
    "gain",
    "hiding",
    "mix",
    "tilted",
]
