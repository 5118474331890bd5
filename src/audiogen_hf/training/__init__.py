"""Training: the language model (`audiogen_hf.training.lm`), the EnCodec tokenizer that it reads
(`audiogen_hf.training.codec`), and what both need."""
