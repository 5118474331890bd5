"""AudioGen's tokenizer as a new `EncodecModel`, and its forward pass while it trains."""

import math
from typing import NamedTuple

import torch
from torch import nn
from transformers import EncodecConfig, EncodecModel

from .arguments import EncodecTrainingArguments
from .quantization import QuantizerTrainer


def encodec_config(args: EncodecTrainingArguments) -> EncodecConfig:
    """The architecture of AudioGen's tokenizer: not causal, zero padding, identity shortcuts, no normalization."""
    config = EncodecConfig(
        sampling_rate=args.sampling_rate,
        num_filters=args.num_filters,
        hidden_size=args.hidden_size,
        num_lstm_layers=args.num_lstm_layers,
        upsampling_ratios=args.upsampling_ratios,
        codebook_size=args.codebook_size,
        normalize=False,
        use_causal_conv=False,
        use_conv_shortcut=False,
        pad_mode="constant",
    )
    # `EncodecConfig` tells the number of codebooks as a bandwidth, in kbit/s.
    config.target_bandwidths = [args.num_codebooks * config.codebook_nbits * config.frame_rate / 1000]
    assert config.num_quantizers == args.num_codebooks
    return config


def build_encodec(args: EncodecTrainingArguments) -> EncodecModel:
    """A new model whose convolutions keep the scale of what passes through them.

    `EncodecModel` leaves its weight-normed convolutions at PyTorch's default, which shrinks the variance three times a
    layer: through thirty layers little of the sound arrives, and hundreds of steps pass before it does. Here weights
    are normal with variance 1 / fan-in and biases are 0.
    """
    model = EncodecModel(encodec_config(args))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
                fan_in = module.in_channels * module.kernel_size[0]
                if isinstance(module, nn.ConvTranspose1d):
                    fan_in //= module.stride[0]  # as many of the kernel's taps meet in one output sample
                # Assigned, not filled in place: weight norm computes the weight from its own parameters.
                module.weight = torch.randn_like(module.weight) / math.sqrt(fan_in)
                module.bias.zero_()
    return model


class TrainingOutput(NamedTuple):
    """
    audio: (batch, 1, samples), the reconstruction.
    commitment_loss: scalar; 0 where the codes were given.
    codes: (batch, codebooks, frames).
    residuals: (codebooks, batch * frames, dim), for the update of the codebooks; None where the codes were given.
    """

    audio: torch.Tensor
    commitment_loss: torch.Tensor
    codes: torch.Tensor
    residuals: torch.Tensor | None


class EncodecForTraining(nn.Module):
    """`EncodecModel` with the forward pass of training, where gradients pass through the quantizer."""

    def __init__(self, model: EncodecModel, quantizer: QuantizerTrainer):
        super().__init__()
        self.model = model
        self.quantizer = quantizer

    def forward(self, audio: torch.Tensor, codes: torch.Tensor | None = None) -> TrainingOutput:
        """Reconstruct `audio`; with its `codes` (batch, codebooks, frames) given, by the decoder alone."""
        if codes is not None:
            embeddings = self.model.quantizer.decode(codes.transpose(0, 1))
            reconstruction = self.model.decoder(embeddings)[..., : audio.shape[-1]]
            return TrainingOutput(reconstruction, audio.new_zeros(()), codes, None)
        hidden_states = self.model.encoder(audio)
        with torch.autocast(audio.device.type, enabled=False):  # which code is nearest is a matter of float32
            quantized, residuals = self.quantizer.quantize(hidden_states.float())
        # The last frame may reach beyond the end of the sound.
        reconstruction = self.model.decoder(quantized.quantized)[..., : audio.shape[-1]]
        return TrainingOutput(reconstruction, quantized.commitment_loss, quantized.codes, residuals)
