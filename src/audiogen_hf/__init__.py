"""Text to sound with AudioGen, in the Hugging Face ecosystem."""

__version__ = "0.1.0"
