"""The chain oracle itself, against enumeration of 64 sequences (section 2.2, items 1 and 2 of the reference)."""

import torch

from .chain import Chain, ExactChain, noise
from .oracle import posteriors, sequences


def small():
    chain = Chain(size=4, length=3)
    law = chain.log_prob(sequences(4, 3)).exp().reshape(4, 4, 4)
    return noise(size=4), chain, law


def test_2_2_1_forward_backward_is_enumeration():
    """Marginals agree to 1e-12, and x_hat = p @ codebook is the posterior mean of the vectors."""
    process, chain, law = small()
    for level in (0.1, 0.5, 0.9):
        t = torch.full((5,), level, dtype=torch.float64)
        z = process.corrupt(chain.sample(5), t, torch.Generator().manual_seed(1))
        expected = posteriors(law, process.output_prior(z, t).exp(), "full")
        logp = ExactChain(process, chain)(z, t)
        torch.testing.assert_close(logp.exp(), expected, rtol=0, atol=1e-12)
        weight = law.flatten() * process.output_prior(z, t).exp().gather(
            -1, sequences(4, 3).T[None].expand(5, -1, -1)
        ).prod(1)
        mean = torch.einsum("bn,nld->bld", weight / weight.sum(1, keepdim=True), process.codebook[sequences(4, 3)])
        torch.testing.assert_close(process.mean(logp.exp()), mean, rtol=0, atol=1e-12)


def test_2_2_2_the_score_of_a_whole_sequence_is_the_gradient_of_its_density():
    """(alpha x_hat - z) / sigma^2 = grad_z log p_t(z), positions dependent; 1e-9."""
    process, chain = noise(), Chain()
    for level in (0.1, 0.5, 0.9):
        t = torch.full((4,), level, dtype=torch.float64)
        alpha, sigma = (scale[..., None] for scale in process.scales(process.gamma(t)[0]))
        z = process.corrupt(chain.sample(4), t, torch.Generator().manual_seed(1)).requires_grad_()
        distance = ((z[:, :, None] - alpha[..., None] * process.codebook) ** 2).sum(-1)
        (gradient,) = torch.autograd.grad(chain.log_evidence(-distance / (2 * sigma**2)).sum(), z)
        x = process.mean(ExactChain(process, chain)(z, t).exp())
        torch.testing.assert_close((alpha * x - z) / sigma**2, gradient, rtol=1e-9, atol=1e-9)


def test_the_chain_is_a_law():
    _, chain, law = small()
    assert abs(law.sum().item() - 1) < 1e-12
    assert abs(chain.entropy() + (law * law.log()).sum().item()) < 1e-12
    torch.testing.assert_close(chain.bigrams()[1], law.sum(0), rtol=0, atol=1e-12)
    drawn = chain.sample(20_000)
    counts = torch.bincount(drawn[:, 0] * 16 + drawn[:, 1] * 4 + drawn[:, 2], minlength=64) / 20_000
    # five standard errors of a share, false alarm below 1e-4 over the 64
    assert ((counts - law.flatten()).abs() < 5 * (law.flatten() / 20_000).sqrt() + 1e-3).all()
