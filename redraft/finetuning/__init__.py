"""Supervised fine-tuning on conversations: rows of answers, adapters, and the run."""

from redraft.finetuning.run import finetune

__all__ = ["finetune"]
