"""Evaluate a model on a dataset, or a folder of sounds against a folder of references.

A model: cross entropy and perplexity per codebook, then generated sounds and every metric of the preset. Interrupted,
the same command goes on with the sounds that are missing.

    accelerate launch examples/evaluate_audiogen.py \\
        --model facebook/audiogen-medium --dataset path/or/name --output eval/

The codec of that model, on the same sounds encoded and decoded:

    accelerate launch examples/evaluate_audiogen.py --model ... --dataset ... --use-gt --output eval_codec/

Two folders, without a model:

    python examples/evaluate_audiogen.py --generated sounds/ --references real/ --output eval/

`--preset audiocraft` takes the figures of AudioGen's model card; see docs/source/evaluation.md.
"""

import argparse
import sys

from audiogen_hf.metrics.command import add_evaluate_arguments, run_evaluate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_evaluate_arguments(parser)
    try:
        run_evaluate(parser.parse_args())
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
