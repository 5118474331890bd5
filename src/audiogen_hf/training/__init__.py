"""Training: the language model, and (`audiogen_hf.training.codec`) the EnCodec tokenizer that it reads."""
