"""The quantizer that learns chooses what the stock one chooses, and moves its codebooks by the published rules."""

import itertools

import pytest
import torch
from transformers import EncodecConfig, EncodecModel

from audiogen_hf.training.codec.quantization import QuantizerTrainer, kmeans


def quantizer_trainer(num_codebooks=3, codebook_size=8, dim=4, **options) -> QuantizerTrainer:
    bits = codebook_size.bit_length() - 1
    config = EncodecConfig(
        sampling_rate=16000,
        hidden_size=dim,
        num_filters=2,
        num_lstm_layers=1,
        codebook_size=codebook_size,
        target_bandwidths=[num_codebooks * bits * 50 / 1000],
    )
    trainer = QuantizerTrainer(EncodecModel(config).quantizer, **options)
    assert len(trainer.codebooks) == num_codebooks
    return trainer


def with_random_codebooks(trainer: QuantizerTrainer, cluster_size: float = 10.0) -> QuantizerTrainer:
    generator = torch.Generator().manual_seed(0)
    for codebook in trainer.codebooks:
        codebook.embed.copy_(torch.randn(codebook.embed.shape, generator=generator))
        codebook.cluster_size.fill_(cluster_size)
        codebook.embed_avg.copy_(codebook.embed * cluster_size)
    return trainer


def test_codes_and_sums_are_those_of_the_stock_quantizer():
    trainer = with_random_codebooks(quantizer_trainer())
    hidden_states = torch.randn(2, 4, 5)
    output, residuals = trainer.quantize(hidden_states)
    codes = trainer.quantizer.encode(hidden_states)
    assert torch.equal(output.codes, codes.transpose(0, 1))
    torch.testing.assert_close(output.quantized, trainer.quantizer.decode(codes))
    assert residuals.shape == (3, 10, 4)
    torch.testing.assert_close(residuals[0], hidden_states.transpose(1, 2).reshape(10, 4))


def test_gradients_pass_straight_through_and_commitment_pulls_residuals_to_their_codes():
    trainer = with_random_codebooks(quantizer_trainer(num_codebooks=1))
    hidden_states = torch.randn(2, 4, 5, requires_grad=True)
    output, _ = trainer.quantize(hidden_states)
    weights = torch.randn(2, 4, 5)
    (gradient,) = torch.autograd.grad((output.quantized * weights).sum(), hidden_states)
    assert torch.equal(gradient, weights)
    code_vectors = trainer.quantizer.decode(output.codes.transpose(0, 1))
    assert output.commitment_loss.item() == pytest.approx((hidden_states - code_vectors).pow(2).mean().item())
    (gradient,) = torch.autograd.grad(output.commitment_loss, hidden_states)
    torch.testing.assert_close(gradient, 2 * (hidden_states.detach() - code_vectors) / hidden_states.numel())


def test_codebooks_move_to_the_moving_average_of_the_vectors_that_chose_them():
    trainer = with_random_codebooks(quantizer_trainer(num_codebooks=1, decay=0.9, dead_code_ratio=0), cluster_size=2)
    codebook = trainer.codebooks[0]
    before = codebook.embed.clone()
    codes = torch.tensor([[[3, 3, 5]]])
    vectors = torch.randn(1, 3, 4)
    trainer.update_codebooks(codes, vectors, step=1)
    size = 0.9 * 2 + 0.1 * 2
    assert codebook.cluster_size.tolist() == pytest.approx([1.8, 1.8, 1.8, size, 1.8, 1.9, 1.8, 1.8])
    expected = (0.9 * 2 * before[3] + 0.1 * (vectors[0, 0] + vectors[0, 1])) / size
    torch.testing.assert_close(codebook.embed[3], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(codebook.embed[0], before[0], rtol=1e-4, atol=1e-5)


def test_repeated_updates_bring_codes_to_the_means_of_their_vectors():
    trainer = with_random_codebooks(quantizer_trainer(num_codebooks=1, codebook_size=2, decay=0.5, dead_code_ratio=0))
    vectors = torch.cat([torch.randn(50, 4) + 5, torch.randn(50, 4) - 5])
    hidden_states = vectors.T[None]
    for step in range(1, 40):
        output, residuals = trainer.quantize(hidden_states)
        trainer.update_codebooks(output.codes, residuals, step)
    codes = trainer.quantize(hidden_states)[0].codes[0, 0]
    for code in codes.unique():
        mean = vectors[codes == code].mean(dim=0)
        torch.testing.assert_close(trainer.codebooks[0].embed[code], mean, rtol=1e-3, atol=1e-3)


def test_dead_codes_are_replaced_by_different_vectors_of_the_batch_and_live_on():
    trainer = with_random_codebooks(quantizer_trainer(num_codebooks=1, dead_code_interval=2))
    codebook = trainer.codebooks[0]
    codebook.cluster_size.copy_(torch.tensor([10.0, 0, 10, 0, 10, 10, 10, 0.5]))
    codebook.embed_avg.copy_(codebook.embed * codebook.cluster_size[:, None])
    before = codebook.embed.clone()
    vectors = torch.randn(1, 6, 4) + 20
    codes = torch.zeros(1, 1, 6, dtype=torch.int64)
    trainer.update_codebooks(codes, vectors, step=1)
    assert (codebook.embed[[1, 3, 7]] < 15).all(), "step 1 is not one of every second"
    trainer.update_codebooks(codes, vectors, step=2)
    replaced = codebook.embed[[1, 3, 7]]
    assert all((vectors[0] == code).all(dim=1).any() for code in replaced)
    assert len(replaced.unique(dim=0)) == 3
    torch.testing.assert_close(codebook.embed[[2, 4, 5, 6]], before[[2, 4, 5, 6]], rtol=1e-4, atol=1e-5)
    # They count as used evenly, and the next update moves them from where they are.
    even_use = codebook.cluster_size[1].item()
    assert even_use > 0.1 * codebook.cluster_size.mean().item()
    trainer.update_codebooks(codes, vectors, step=3)
    torch.testing.assert_close(codebook.embed[[1, 3, 7]], replaced, rtol=1e-4, atol=1e-4)


def test_more_dead_codes_than_vectors_is_no_error_and_the_same_step_replaces_alike():
    first, second = (with_random_codebooks(quantizer_trainer(num_codebooks=2)) for _ in range(2))
    vectors = torch.randn(2, 2, 4)
    for trainer in (first, second):
        for codebook in trainer.codebooks:
            codebook.cluster_size.fill_(0.0)[0] = 100
        trainer.update_codebooks(torch.zeros(1, 2, 2, dtype=torch.int64), vectors, step=5)
    for a, b in zip(first.codebooks, second.codebooks, strict=True):
        assert torch.isfinite(a.embed).all()
        assert torch.equal(a.embed, b.embed)


def test_kmeans_finds_separate_clusters():
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    generator = torch.Generator().manual_seed(3)
    vectors = (centres[:, None] + 0.1 * torch.randn(3, 30, 2, generator=generator)).reshape(90, 2)
    found, counts = kmeans(vectors, 3, iterations=20, generator=generator)
    assert counts.sum() == 90
    nearest = torch.cdist(found, vectors).argmin(dim=0)
    for cluster in nearest.unique():
        torch.testing.assert_close(found[cluster], vectors[nearest == cluster].mean(dim=0), rtol=1e-4, atol=1e-4)


def test_kmeans_of_fewer_vectors_than_clusters_keeps_finite_centres():
    vectors = torch.randn(3, 2)
    centres, counts = kmeans(vectors, 8, iterations=3, generator=torch.Generator().manual_seed(0))
    assert torch.isfinite(centres).all()
    assert counts.sum() == 3


def test_the_start_quantizes_better_with_every_codebook_and_survives_the_first_update():
    trainer = quantizer_trainer(num_codebooks=3, codebook_size=16, dead_code_ratio=0)
    vectors = torch.randn(400, 4, generator=torch.Generator().manual_seed(0))
    trainer.initialize_codebooks(vectors, vectors_per_update=100, iterations=10)
    hidden_states = vectors[:100].T[None]
    output, residuals = trainer.quantize(hidden_states)
    errors = [*residuals.pow(2).mean(dim=(1, 2)).tolist(), (output.quantized - hidden_states).pow(2).mean().item()]
    assert all(after < 0.7 * before for before, after in itertools.pairwise(errors))
    assert trainer.codebooks[0].cluster_size.sum().item() == pytest.approx(100, rel=0.05)
    before = trainer.codebooks[0].embed.clone()
    trainer.update_codebooks(output.codes, residuals, step=1)
    assert (trainer.codebooks[0].embed - before).abs().max() < 0.2
