"""Make sounds with AudioGen from Python: of texts, away from a text, going on from a sound, longer than the window.

    python examples/generate.py --output outputs
    python examples/generate.py --model facebook/audiogen-medium --output outputs

For a command with every option see `audiogen-hf generate --help`.
"""

import argparse
from pathlib import Path

import torch

from audiogen_hf import AudioGenForConditionalGeneration, AudioGenProcessor


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="audiogen-tiny", help="Hub id, folder or audiogen-tiny")
    parser.add_argument("--text_encoder", help="for AudioCraft's layout: a folder in place of the T5 that it names")
    parser.add_argument("--duration", type=float, default=5.0, help="seconds of each sound")
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder for the sounds")
    args = parser.parse_args()

    device, dtype = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)
    processor = AudioGenProcessor.from_pretrained(args.model, text_encoder=args.text_encoder)
    model = AudioGenForConditionalGeneration.from_pretrained(args.model, text_encoder=args.text_encoder, dtype=dtype)
    model.to(device)

    def save(name: str, audio: torch.Tensor, prompt: str | None):
        print(processor.save_audio(args.output / name, audio, metadata={"prompt": prompt, "model_id": args.model}))

    # 1. Two takes of each text, in one batch. A generator a sample makes every take reproducible by itself.
    texts = ["a dog barks", "rain on a tin roof"]
    takes = model.generate(
        **processor(text=texts),
        audio_length_in_s=args.duration,
        num_return_sequences=2,
        generator=[torch.Generator().manual_seed(seed) for seed in (0, 1, 0, 1)],
        progress=True,
    )
    for index, audio in enumerate(takes):
        save(f"text{index // 2}_take{index % 2}.wav", audio, texts[index // 2])

    # 2. Away from a text: guidance starts from the negative prompt in place of no prompt.
    inputs = processor(text=["rain on a tin roof"], negative_text="thunder")
    save("no_thunder.wav", model.generate(**inputs, audio_length_in_s=args.duration)[0], "rain on a tin roof")

    # 3. Going on from a sound: `audio_length_in_s` counts it.
    start = takes[0, :, : takes.shape[-1] // 2]
    inputs = processor(text=["a dog barks"], audio=start, sampling_rate=processor.sampling_rate)
    save("continued.flac", model.generate(**inputs, audio_length_in_s=args.duration)[0], "a dog barks")

    # 4. Longer than the window of the model, and of no text at all.
    seconds = model.config.segment_duration + 1
    inputs = model.get_unconditional_inputs(1)
    save("long.wav", model.generate(**inputs, audio_length_in_s=seconds, extend_stride=seconds / 4)[0], None)


if __name__ == "__main__":
    main()
