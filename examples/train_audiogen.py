"""Train AudioGen: from scratch, further from a pretrained model, or by adapters.

    accelerate launch examples/train_audiogen.py --config small --tokenizer_model facebook/audiogen-medium \\
        --train_data data/train --validation_data data/valid --output_dir runs/small
    accelerate launch examples/train_audiogen.py --config lora --model_name_or_path facebook/audiogen-medium \\
        --train_data data/train --validation_data data/valid --output_dir runs/lora

`--help` lists the options; docs/source/training.md explains them.
"""

import logging

from audiogen_hf.training.arguments import one_line_errors, parse_arguments
from audiogen_hf.training.lm.arguments import AudioGenTrainingArguments
from audiogen_hf.training.lm.trainer import AudioGenTrainer


def main():
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.WARNING)
    logging.getLogger("audiogen_hf").setLevel(logging.INFO)
    args = parse_arguments(AudioGenTrainingArguments, description=__doc__.splitlines()[0])
    with one_line_errors():
        trainer = AudioGenTrainer(args)
    trainer.train()


if __name__ == "__main__":
    main()
