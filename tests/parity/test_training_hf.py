"""transformers.Trainer and the loop take the same steps: same rows, corruption, loss and gradient norm."""

import pytest
import torch

from parity import small
from redraft import objectives
from redraft.training import DiffusionTrainer


def arguments(out, **options):
    from transformers import TrainingArguments

    base = {
        "max_steps": 2, "learning_rate": 1e-3, "warmup_steps": 0, "lr_scheduler_type": "constant", "logging_steps": 1,
        "max_grad_norm": 1.0, "report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_steps": 1,
        "dataloader_pin_memory": False,
    }  # fmt: skip
    return TrainingArguments(str(out), **{**base, **options})


def trainer(out, **options):
    return DiffusionTrainer(
        small.model().double(), arguments(out, **options), small.process(), objectives.get("nelbo"), small.Rows(),
        eval_rows=small.Rows(12, seed=1),
    )  # fmt: skip


@pytest.mark.parametrize("layout", [(8, 1), (4, 2)])
def test_trainer_takes_the_steps_of_the_loop(tmp_path, layout, capsys):
    size, parts = layout
    front = trainer(
        tmp_path / "hf", per_device_train_batch_size=size, gradient_accumulation_steps=parts, save_strategy="no", seed=3
    )
    front.train()
    loop = small.train(tmp_path / "loop", steps=2, warmup=0, decay=0.0, seed=3)
    rows = [row for row in front.state.log_history if "grad_norm" in row]
    for ours, theirs in zip(small.metrics(tmp_path / "loop"), rows, strict=True):
        # Trainer logs in float32
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-6)
        assert theirs["grad_norm"] == pytest.approx(ours["norm"], rel=1e-6)
    torch.testing.assert_close(dict(front.model.state_dict()), loop.weights, rtol=0, atol=1e-9)
    assert front.evaluate()["eval_loss"] == front.evaluate()["eval_loss"]


def test_trainer_resumes_exactly(tmp_path, capsys):
    options = {"per_device_train_batch_size": 8, "save_strategy": "steps"}
    whole = trainer(tmp_path / "hf", **options)
    whole.train()
    again = trainer(tmp_path / "hf", **options)
    again.train(resume_from_checkpoint=str(tmp_path / "hf" / "checkpoint-1"))
    assert small.same(dict(again.model.state_dict()), dict(whole.model.state_dict()))


def test_bad_arguments(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="max_steps=-1"):
        trainer(tmp_path, max_steps=-1)
    good = arguments(tmp_path)
    monkeypatch.setattr("redraft.training.hf.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"redraft\[train\]"):
        DiffusionTrainer(small.model(), good, small.process(), objectives.get("nelbo"), small.Rows())
