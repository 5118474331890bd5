"""Training of EnCodec tokenizers on transformers' `EncodecModel`."""
