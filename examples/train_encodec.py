"""Train an EnCodec tokenizer on transformers' `EncodecModel`.

    accelerate launch examples/train_encodec.py --train_data sounds/ --output_dir runs/encodec
    accelerate launch examples/train_encodec.py --config encodec_cpu --train_data sounds/ --output_dir runs/encodec

`--help` lists the options; docs/source/training_encodec.md explains them.
"""

import logging

from transformers.utils.logging import disable_progress_bar

from audiogen_hf.training.arguments import one_line_errors, parse_arguments
from audiogen_hf.training.codec.arguments import EncodecTrainingArguments
from audiogen_hf.training.codec.trainer import EncodecTrainer


def main():
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.WARNING)
    logging.getLogger("audiogen_hf").setLevel(logging.INFO)
    disable_progress_bar()  # of `save_pretrained`, at every checkpoint
    args = parse_arguments(EncodecTrainingArguments, description=__doc__.splitlines()[0])
    with one_line_errors():
        trainer = EncodecTrainer(args)
    trainer.train()


if __name__ == "__main__":
    main()
