"""The head of a model: which fits what, what it costs to ask for a few positions, finite numbers at both ends of t."""

import pytest
import torch

from redraft import objectives, processes
from redraft.models import Transformer, TransformerConfig, folder, heads

PROCESSES = {
    "masked": processes.masked(7),
    "inside": processes.masked(8, mask_id=3),
    "uniform": processes.uniform(7),
    "hybrid": processes.hybrid(7),
    "chain": processes.masked(7, steps=10),
    "ordinal": processes.d3pm(7, "gaussian", 10),
}
FITS = {
    "masked": ("subs", "plain", "score", "logistic"),
    "inside": ("subs", "plain", "score"),
    "uniform": ("plain", "score", "logistic"),
    "hybrid": ("subs", "score", "logistic"),
    "chain": ("subs", "plain", "logistic"),
    "ordinal": ("plain", "logistic"),
}
PAIRS = [(kind, head) for kind, found in FITS.items() for head in found]


def build(process, head, **options):
    torch.manual_seed(0)
    config = TransformerConfig(process.to_dict(), depth=1, time_conditioned=True, head=head, **options)
    model = Transformer(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("kind", PROCESSES)
def test_what_does_not_fit_is_refused_naming_both(kind):
    stored = PROCESSES[kind].to_dict()
    for head in heads.HEADS:
        if head in FITS[kind]:
            assert heads.get(head, stored) is heads.HEADS[head]
        else:
            with pytest.raises(ValueError, match=f"head '{head}' with a {stored['name']} process"):
                Transformer(TransformerConfig(stored, depth=1, head=head))


def test_what_else_is_refused():
    with pytest.raises(ValueError, match="unknown head 'scroe'; did you mean 'score'"):
        heads.get("scroe", PROCESSES["masked"].to_dict())
    gaussian = processes.gaussian(torch.eye(4)).to_dict()
    per_token = processes.learned(torch.zeros(4)).to_dict()
    for head, stored in (("logistic", gaussian), ("score", gaussian), ("plain", per_token), ("score", per_token)):
        with pytest.raises(ValueError, match=f"head '{head}' with a {stored['name']} process"):
            heads.get(head, stored)


def test_unless_told_a_mask_decides():
    names = {kind: heads.get(None, process.to_dict()) for kind, process in PROCESSES.items()}
    for kind, process in PROCESSES.items():
        assert names[kind] is heads.HEADS["plain" if process.mask_id is None else "subs"]


@pytest.mark.parametrize(("kind", "head"), PAIRS)
def test_output_is_a_law_wherever_it_is_asked_for(kind, head):
    """Rows sum to one, over K or for ``plain`` with a mask over V; ``where`` answers as the whole does; t = 0 and 1."""
    process = PROCESSES[kind]
    model = build(process, head)
    assert model.facts.selective
    assert model.facts.scores == (head == "score")
    clean = torch.tensor([x for x in range(process.K) if x != process.mask_id])
    x0 = clean[torch.randint(0, len(clean), (4, 5))]
    t = torch.tensor([1e-5, 0.3, 0.8, 1.0], dtype=torch.float64)
    z = process.corrupt(x0, t, torch.Generator().manual_seed(0))
    logp = model(z, t)
    assert logp.shape == (4, 5, process.V if head == "plain" else process.K)
    torch.testing.assert_close(logp.exp().sum(-1), torch.ones(4, 5))
    where = torch.rand(4, 5) < 0.5
    torch.testing.assert_close(model(z, t, None, where), logp[where])
    torch.testing.assert_close(
        model(z, t.float()[:, None].expand(4, 5), None, where), logp[where], rtol=1e-3, atol=1e-4
    )
    logp.gather(-1, x0[..., None]).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_scores_are_asked_for_by_name():
    process = PROCESSES["uniform"]
    model, z, t = build(process, "score"), torch.randint(0, 7, (2, 4)), torch.tensor([0.3, 0.9])
    found = model(z, t, scores=True)
    assert found.shape == (2, 4, 7)
    assert (found.gather(-1, z[..., None]) == 0).all()
    torch.testing.assert_close(heads.from_score(found, z, t, process), model(z, t))
    where = torch.rand(2, 4) < 0.5
    torch.testing.assert_close(model(z, t, where=where, scores=True), found[where])
    with pytest.raises(ValueError, match=r"model\.head=score"):
        build(process, "plain")(z, t, scores=True)


def test_float32_conversion_is_close():
    """Float32 laws there and back again, coefficients float64: 1e-4 relative down to alpha = 0.01, K = 5,000."""
    process = processes.uniform(5000)
    logp = (2 * torch.randn(4, 3, 5000, generator=torch.Generator().manual_seed(0))).log_softmax(-1)
    t = torch.tensor([1e-4, 0.1, 0.5, 0.99])
    z = torch.randint(0, 5000, (4, 3))
    again = heads.from_score(heads.to_score(logp, z, t, process), z, t, process)
    likely = logp > logp.logsumexp(-1, keepdim=True) - torch.tensor(5000.0).log()
    torch.testing.assert_close(again[likely], logp[likely], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("kind", "head"), PAIRS)
def test_every_head_learns(kind, head):
    """Ten steps on one text lower the objective that goes with the process."""
    process = PROCESSES[kind]
    model = build(process, head).train()
    name = "sedd" if head == "score" else "d3pm" if getattr(process, "steps", None) else "nelbo"
    clean = [x for x in range(process.K) if x != process.mask_id]
    batch = {"ids": torch.tensor([clean[1], clean[4], clean[4], clean[2]]).expand(32, -1)}
    u = (torch.arange(32, dtype=torch.float64) + 0.5) / 32
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    bounds = []
    for _ in range(10):
        loss = objectives.get(name)(model, process, batch, u, torch.Generator().manual_seed(0))
        bounds.append(loss.bound.mean().item())
        optimizer.zero_grad()
        loss.value.mean().backward()
        optimizer.step()
    assert bounds[-1] < 0.8 * bounds[0]


def test_the_head_is_stored_with_the_model(tmp_path):
    model = build(PROCESSES["uniform"], "score")
    folder.save(tmp_path, model.config, model.state_dict(), None, {"context": 4})
    again, _ = folder.load(tmp_path)
    assert again.facts.scores
    assert again.head.out_features == 7
