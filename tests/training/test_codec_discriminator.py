"""The discriminator sees the spectrograms that AudioCraft's sees, and gives its values."""

import pytest
import torch
from test_codec_losses import signals

from audiogen_hf.training.codec.discriminator import MultiScaleSTFTDiscriminator, STFTDiscriminator
from audiogen_hf.training.codec.losses import discriminator_hinge_loss, feature_matching_loss, generator_hinge_loss


def discriminator_with_sine_weights() -> MultiScaleSTFTDiscriminator:
    """Eight filters, no biases, kernels 0.3 * sin(1), 0.3 * sin(2), ... in order of memory, weight norms 3."""
    discriminator = MultiScaleSTFTDiscriminator(num_filters=8)
    with torch.no_grad():
        for name, parameter in discriminator.named_parameters():
            index = torch.arange(1, parameter.numel() + 1, dtype=torch.float64).reshape(parameter.shape)
            if name.endswith("bias"):
                parameter.zero_()
            elif name.endswith("original0"):  # the norm of a weight-normed kernel
                parameter.fill_(3.0)
            else:
                parameter.copy_(0.3 * torch.sin(index))
    return discriminator


def test_logits_and_losses_have_audiocrafts_values():
    # AudioCraft 1.3.0: MultiScaleSTFTDiscriminator with the settings of its compression solver and 8 filters, and its
    # hinge and feature matching losses divided by the number of scales; weights and signals as here.
    discriminator = discriminator_with_sine_weights()
    estimate, target = signals()
    with torch.no_grad():
        fake_logits, fake_features = discriminator(estimate)
        real_logits, real_features = discriminator(target)
    magnitudes = [logits.abs().mean().item() for logits in fake_logits]
    assert magnitudes == pytest.approx([0.14566775, 0.13510627, 0.1908977, 0.21824759, 0.15879123], rel=1e-5)
    assert discriminator_hinge_loss(real_logits, fake_logits).item() == pytest.approx(2.01774836, rel=1e-5)
    assert generator_hinge_loss(fake_logits).item() == pytest.approx(-0.01775148, rel=1e-4)
    assert feature_matching_loss(real_features, fake_features).item() == pytest.approx(5.733144e-4, rel=1e-4)


def test_logits_cover_every_frame_and_an_eighth_of_the_frequencies():
    logits, features = STFTDiscriminator(n_fft=512, num_filters=2)(torch.randn(3, 1, 4000))
    frames = (4000 - 512) // 128 + 1
    assert logits.shape == (3, 1, frames, 33)
    assert [f.shape[-1] for f in features] == [257, 129, 65, 33, 33]
    assert all(f.shape[:3] == (3, 2, frames) for f in features)


def test_overlap_says_how_many_windows_hear_a_sample():
    logits, _ = STFTDiscriminator(n_fft=512, num_filters=2, overlap=2)(torch.randn(1, 1, 4000))
    assert logits.shape[2] == (4000 - 512) // 256 + 1


def test_items_of_a_batch_do_not_touch_each_other():
    discriminator = MultiScaleSTFTDiscriminator(num_filters=2, n_ffts=(128, 256))
    audio = torch.randn(2, 1, 2000)
    together, _ = discriminator(audio)
    alone, _ = discriminator(audio[1:])
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a[1:], b)


def test_compression_takes_the_magnitudes_to_its_power_and_keeps_phases():
    plain, compressed = (STFTDiscriminator(n_fft=256, num_filters=2, compression=c) for c in (1.0, 0.5))
    seen = {}
    for name, module in (("plain", plain), ("compressed", compressed)):
        module.convs[0].register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0]}))
        module(torch.randn(2, 1, 1000, generator=torch.Generator().manual_seed(0)))
    before, after = (torch.complex(*seen[name].double().unbind(dim=1)) for name in ("plain", "compressed"))
    expected = torch.polar(before.abs().sqrt(), before.angle())
    torch.testing.assert_close(after, expected, rtol=1e-3, atol=2e-2)
    loud = before.abs() > 0.1
    torch.testing.assert_close(after[loud], expected[loud], rtol=1e-4, atol=0)


def test_compression_leaves_silence_silent_with_finite_gradients():
    audio = torch.zeros(1, 1, 1000, requires_grad=True)
    logits, features = STFTDiscriminator(n_fft=256, num_filters=2, compression=0.3)(audio)
    logits.sum().backward()
    assert audio.grad.isfinite().all()
    torch.testing.assert_close(features[0], features[0][..., :1, :1].expand_as(features[0]))


def test_compression_learns_to_tell_noise_from_its_smooth_copy_in_fewer_steps():
    generator = torch.Generator().manual_seed(0)
    noise = 0.05 * torch.randn(8, 1, 4000, generator=generator)
    smooth = 0.05 * torch.sin(torch.arange(4000) * 0.3).expand(8, 1, -1)
    losses = []
    for compression in (1.0, 0.3):
        torch.manual_seed(0)
        discriminator = MultiScaleSTFTDiscriminator(num_filters=4, n_ffts=(256,), compression=compression)
        optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-3, betas=(0.5, 0.9))
        for _ in range(40):
            (real,), _ = discriminator(noise)
            (fake,), _ = discriminator(smooth)
            loss = discriminator_hinge_loss([real], [fake])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[1] < 0.75 * losses[0]
