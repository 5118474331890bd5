"""Training of the language model: AudioGen's decoder, with its text encoder and its tokenizer frozen."""
