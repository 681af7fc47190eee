"""The transformer's shape and facts, and the folder it is stored in."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from redraft import files, objectives, processes
from redraft.data import build_tokenizer
from redraft.models import Transformer, TransformerConfig, folder, weights, widths
from redraft.models.weights import WEIGHTS
from redraft.sampling import sample


def build(process, **options):
    tensors = {"codebook": process.codebook} if process.name == "gaussian" else {}
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(process.to_dict(), depth=1, **options), tensors)
    with torch.no_grad():  # a fresh head is zero, which would hide everything below it
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


CODEBOOK = F.normalize(torch.randn(13, 16, generator=torch.Generator().manual_seed(1)), dim=-1)
PROCESSES = {
    "masked": processes.masked(13),
    "uniform": processes.uniform(13),
    "hybrid": processes.hybrid(13),
    "gaussian": processes.gaussian(CODEBOOK),
}


def test_the_dial():
    assert [widths(depth).width for depth in (1, 2, 12)] == [64, 128, 768]
    assert widths(6).hidden == 1024
    inner = sum(
        p.numel() for p in Transformer(TransformerConfig(processes.masked(10).to_dict(), depth=6)).blocks.parameters()
    )
    assert inner == pytest.approx(12 * 6 * 384**2, rel=0.01)
    with pytest.raises(ValueError, match="depth=0"):
        widths(0)


@pytest.mark.parametrize("name", PROCESSES)
def test_output_is_a_law_over_clean_tokens(name):
    process = PROCESSES[name]
    model = build(process, time_conditioned=name != "masked")
    t = torch.rand(3)
    z = process.corrupt(torch.randint(0, 13, (3, 5)), t, torch.Generator().manual_seed(0))
    logp = model(z, t)
    assert logp.shape == (3, 5, 13)
    torch.testing.assert_close(logp.exp().sum(-1), torch.ones(3, 5))
    where = torch.rand(3, 5) < 0.5
    torch.testing.assert_close(model(z, t, None, where), logp[where])
    assert model.facts.posterior == ("full" if name == "gaussian" else "cavity")


def test_a_fresh_model_is_uniform():
    model = Transformer(TransformerConfig(processes.masked(7).to_dict(), depth=1))
    logp = model(torch.randint(0, 8, (2, 4)), torch.rand(2))
    torch.testing.assert_close(logp, torch.full_like(logp, -torch.log(torch.tensor(7.0)).item()))


def test_positions_of_an_all_mask_canvas_differ():
    logp = build(processes.masked(13))(torch.full((1, 6), 13), torch.ones(1)).detach()
    assert float((logp[0, 0] - logp[0, 1]).abs().max()) > 1e-3


def test_time_is_read_only_when_asked_for():
    z, early, late = torch.randint(0, 13, (2, 4)), torch.full((2,), 0.2), torch.full((2,), 0.8)
    free, told = build(processes.masked(13)), build(processes.masked(13), time_conditioned=True)
    assert torch.equal(free(z, early), free(z, late))
    assert not torch.allclose(told(z, early), told(z, late))


def test_causal_sees_only_what_is_before():
    model = build(processes.masked(13), attention="causal")
    z, t = torch.randint(0, 13, (1, 6)), torch.ones(1)
    changed = z.clone()
    changed[0, 3] = (z[0, 3] + 1) % 13
    before, after = model(z, t), model(changed, t)
    torch.testing.assert_close(before[:, :4], after[:, :4])  # position 3 itself does not see z_3
    assert not torch.allclose(before[:, 4:], after[:, 4:])
    with pytest.raises(ValueError, match="uniform process"):
        build(processes.uniform(13), attention="causal")


def test_labels_are_refused():
    """A condition that would change nothing is a mistake: guidance by it would mix a model with itself."""
    model = Transformer(TransformerConfig(processes.masked(5).to_dict(), depth=1))
    with pytest.raises(ValueError, match="labels told to a model"):
        model(torch.zeros(1, 2, dtype=torch.long), torch.ones(1), {"labels": torch.zeros(1, dtype=torch.long)})


@pytest.mark.parametrize("causal", [False, True])
def test_segments_do_not_see_one_another(causal):
    model = build(processes.masked(13), attention="causal" if causal else "full")
    z, t = torch.randint(0, 13, (1, 6)), torch.ones(1)
    segments = torch.tensor([[0, 0, 0, 1, 1, 1]])
    changed = z.clone()
    changed[0, 0] = (z[0, 0] + 1) % 13
    before, after = (model(one, t, {"segments": segments}) for one in (z, changed))
    shielded = slice(4, None) if causal else slice(3, None)  # a causal input is shifted: place 3 holds token 2
    torch.testing.assert_close(before[:, shielded], after[:, shielded])
    assert not torch.allclose(model(z, t)[:, shielded], model(changed, t)[:, shielded])


@pytest.mark.parametrize("name", PROCESSES)
def test_folder_round_trip_is_bit_identical(name, tmp_path):
    process = PROCESSES[name]
    model = build(process, time_conditioned=name != "masked")
    folder.save(tmp_path, model.config, model.state_dict(), build_tokenizer("toy"), {"context": 6})
    again, about = folder.load(tmp_path)
    assert about == {"context": 6}
    assert again.process.to_dict() == process.to_dict()
    assert again.facts == model.facts
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    assert not list(tmp_path.glob("*.tmp")) + list(tmp_path.glob(".*"))


@pytest.fixture
def stored(tmp_path):
    model = build(PROCESSES["masked"])
    folder.save(tmp_path, model.config, model.state_dict(), None, {"context": 6})
    return tmp_path


def rewrite(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: rewrite(d / WEIGHTS, lambda t: t.update(odd=t.pop("model.head.weight"))), "head.weight.*odd"),
        (lambda d: rewrite(d / WEIGHTS, lambda t: t.pop("model.blocks.0.qkv.weight")), "missing.*blocks.0.qkv"),
        (
            lambda d: rewrite(d / WEIGHTS, lambda t: t.update({"model.head.weight": torch.zeros(3, 64)})),
            r"head.weight has shape \(3, 64\)",
        ),
        (lambda d: (d / WEIGHTS).write_bytes((d / WEIGHTS).read_bytes()[:-9]), "damaged"),
        (lambda d: (d / WEIGHTS).unlink(), "no such file"),
        (lambda d: (d / folder.CONFIG).write_text("{"), "damaged"),
        (lambda d: (d / folder.CONFIG).write_text('{"model_type": "llama"}'), "'llama' is not supported"),
        (lambda d: (d / folder.CONFIG).write_text('{"model_type": "redraft"}'), "damaged"),
        (lambda d: (d / folder.CONFIG).unlink(), "no config.json"),
    ],
)
def test_a_damaged_folder_is_refused_whole(stored, damage, message):
    damage(stored)
    with pytest.raises(ValueError, match=message):
        folder.load(stored)


def test_a_failed_write_leaves_the_old_file(stored):
    before = (stored / folder.CONFIG).read_bytes()

    def fail(path):
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        files.write(stored / folder.CONFIG, fail)
    assert (stored / folder.CONFIG).read_bytes() == before
    assert len(list(stored.iterdir())) == 2


def test_transformers_reads_and_writes_the_same_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from transformers import AutoModelForMaskedLM, AutoTokenizer
    from transformers.utils import logging

    from redraft.models import hf  # noqa: F401  (registers)

    logging.disable_progress_bar()
    model = build(PROCESSES["hybrid"], time_conditioned=True)
    tokenizer = build_tokenizer("toy")
    folder.save(tmp_path / "ours", model.config, model.state_dict(), tokenizer, {"context": 6})
    theirs = AutoModelForMaskedLM.from_pretrained(tmp_path / "ours")
    z, t = torch.randint(0, 14, (2, 6)), torch.rand(2)
    assert torch.equal(theirs(z, t).logits, model(z, t))
    with pytest.raises(ValueError, match="conditioned on the time"):
        theirs(z)
    theirs.save_pretrained(tmp_path / "theirs")
    again, about = folder.load(tmp_path / "theirs")
    assert torch.equal(again(z, t), model(z, t))
    assert about == {"context": 6}
    text = "our dog s are your friend s"
    assert AutoTokenizer.from_pretrained(tmp_path / "ours")(text).input_ids == tokenizer.encode(text, pad=False)
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["mask_token_id"] == 13


@pytest.mark.parametrize("make", [processes.masked, processes.hybrid])
def test_a_mask_inside_the_vocabulary_is_never_written(make):
    process = make(10, mask_id=3)
    model = build(process, time_conditioned=True)
    t = torch.rand(2)
    assert float(model(torch.randint(0, 10, (2, 4)), t).detach()[..., 3].exp().max()) == 0.0
    for temperature in (0.0, 1.0):
        tokens = sample(process, model, length=8, num=32, steps=2, temperature=temperature).tokens
        assert not bool((tokens == 3).any())
    loss = objectives.nelbo(model, process, {"ids": torch.randint(4, 10, (8, 6))}, torch.rand(8)).value.mean()
    loss.backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())


def test_an_interrupted_exchange_leaves_no_model(stored, monkeypatch):
    model, _ = folder.load(stored)
    monkeypatch.setattr(weights, "save_file", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        folder.save(stored, model.config, model.state_dict(), None, {"context": 6})
    with pytest.raises(ValueError, match=r"no config\.json"):
        folder.load(stored)


def test_low_precision_does_not_round_what_a_vector_says_of_its_token():
    model = build(PROCESSES["gaussian"])
    process, t = model.process, torch.zeros(2)
    z = process.corrupt(torch.randint(0, 13, (2, 5)), t, torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(process.output_prior(z, t), PROCESSES["gaussian"].output_prior(z, t))
