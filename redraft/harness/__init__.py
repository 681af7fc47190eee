"""lm-evaluation-harness: redraft's models as its backend, and the command that runs its tasks."""

from importlib import import_module


def library() -> None:
    """Errors: ``ValueError`` without lm-eval, saying how to install it; asked before anything heavy is."""
    try:
        import_module("lm_eval")
    except ImportError:
        raise ValueError("the harness needs lm-eval: pip install 'redraft[harness]'") from None
