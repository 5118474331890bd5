"""Sound with descriptions, from any `datasets` source to the batches that a trainer feeds to its model.

Small pieces, each usable without the others:

1. `load_audio_text_dataset(source, ...)` opens a source: rows of "audio" (path or bytes, not decoded) and "text".
2. `ClipReader(sampling_rate, segment_duration, min_segment_ratio)` makes a clip of a row and a random stream: one
   decoded segment and one description.
3. `ClipDataset(rows, reader, seed=, shuffle=)` numbers clips for random access; `ClipStream(rows, reader, seed=)` is
   the endless stream of a streamed dataset.
4. `MixedClips(clips, mixing, batch_size)` and `MixedStream(...)` put AudioCraft's mixing augmentation around either.
5. `ClipLoader(clips, collate, batch_size, ...)` with `ClipCollator(processor)` gives the batches of this process.

```python
rows = load_audio_text_dataset("folder, manifest, parquet or Hub name", split="train")
clips = ClipDataset(rows, ClipReader(sampling_rate=16000, segment_duration=10.0), seed=0)
clips = MixedClips(clips, Mixing(aug_p=0.5, mix_p=0.5), batch_size=128)  # optional
loader = ClipLoader(clips, ClipCollator(processor), batch_size=128, num_workers=8)
for batch in loader:  # endless: take as many as wanted
    ...
```

A batch is a dict of tensors. B are the clips of this process: `batch_size` counts those of all processes.

| key | shape, dtype | what |
|---|---|---|
| `input_ids`, `attention_mask` | (B, L) int64 | from the processor; absent when the collator has none |
| `input_values` | (B, 1, N) float32 | mono sound at the reader's rate, zeros after its end |
| `padding_mask` | (B, N) bool | True on real samples; `frame_mask(padding_mask, hop_length)` makes it (B, T) |

Rows of a token cache (`rows, reader = load_token_cache(folder, codec)`) go through the same classes, mixing excepted:

| key | shape, dtype | what |
|---|---|---|
| `audio_codes` | (B, K, T) int64 | in place of `input_values`; zeros after the end |
| `frame_mask` | (B, T) bool | in place of `padding_mask` |
| `encoder_hidden_states` | (B, L, D) float32 | in place of `input_ids`, if the cache holds text states |

Rows of a cache that keeps the sound (`load_coded_sound(folder, codec, segment_duration)`) give `audio_codes` and
`input_values` of the same frames, for training a decoder.

Frames outside the mask are padding and no targets: `labels = audio_codes.masked_fill(~frame_mask[:, None], -100)`.

Promises. Everything random about clip number n follows from `(seed, n)` alone, and batch b holds the numbers from
`b * batch_size` on: the same seed gives the same batches with any number of workers and processes, and going on at
batch b decodes nothing twice. (Streams keep this for any number of threads; each process has its own part of one.)
Corrupt, empty and silent clips are replaced, logged, and counted in `loader.num_skipped`. `loader.state_dict()` and
`load_state_dict()` hold the place reached, so that `accelerator.register_for_checkpointing(loader)` resumes exactly.
Do not pass a loader to `accelerator.prepare`: it reads this process's share already.

For evaluation take `ClipLoader.evaluation(ClipDataset(rows, reader, shuffle=False), collate, batch_size)`: one pass,
always the same; an unusable clip, and what is missing from the last batch, is a clip whose mask is False throughout.
"""

import importlib
import importlib.util

_EXPORTS = {
    "clips": ["ClipDataset", "ClipReader", "ClipStream", "UnusableClipError"],
    "loader": ["ClipCollator", "ClipLoader", "frame_mask"],
    "mixing": ["MixedClips", "MixedStream", "Mixing"],
    "sources": ["load_audio_text_dataset"],
    "token_cache": [
        *("CodedSoundReader", "CodesReader", "is_token_cache", "load_coded_sound", "load_token_cache"),
        *("tokenizer_fingerprint", "write_token_cache"),
    ],
}
_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str):
    """Import a public name on first use: the command line needs `manifest` without torch and datasets."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if importlib.util.find_spec("datasets") is None:
        raise ImportError(f"audiogen_hf.data.{name} needs the library `datasets`: pip install 'audiogen_hf[training]'")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__():
    return __all__
