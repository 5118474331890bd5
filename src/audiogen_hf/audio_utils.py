"""Sound outside the model: reading, resampling, loudness and writing. It knows nothing of models and needs no torch.

Everywhere below, a sound is a NumPy array, a torch tensor or a list, of shape (N,) or (C, N): floating samples with
full scale at ±1, or 16 or 32-bit integers read as PCM. What comes back is a float32 NumPy array.
"""

import json
import logging
import math
import os
import struct
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

logger = logging.getLogger(__name__)

AUDIO_FORMATS = ("wav", "flac", "ogg", "mp3")
NORMALIZATION_STRATEGIES = ("loudness", "peak", "clip", "rms", "none")

MP3_SAMPLING_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)

LOUDNESS_RMS_FLOOR = 2e-3  # AudioCraft's
LOUDNESS_BLOCK_SECONDS = 0.4  # BS.1770's


def read_audio(
    path_or_file: str | os.PathLike | BinaryIO, sampling_rate: int | None = None, mono: bool = True
) -> tuple[np.ndarray, int]:
    """Reads a sound file: whatever libsndfile decodes (wav, flac, ogg, opus, mp3, aiff, ...).

    Args:
        path_or_file: A path, or a binary file open for reading.
        sampling_rate: Rate to resample to, in Hz. By default the file's own.
        mono: Whether to average the channels.

    Returns:
        The samples, float32, of shape (N,) if `mono`, else (C, N); and their sampling rate in Hz.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no sound that can be decoded, or holds no samples, or samples that are not finite.
    """
    with _open_sound(path_or_file) as sound:
        file_sampling_rate = sound.samplerate
        audio = sound.read(dtype="float32", always_2d=True).T
    if audio.shape[1] == 0:
        raise ValueError(f"{path_or_file} holds no samples")
    if not np.isfinite(audio).all():
        raise ValueError(f"{path_or_file} holds NaN or infinite samples")
    audio = np.ascontiguousarray(audio.mean(axis=0) if mono else audio)
    if sampling_rate is None:
        return audio, file_sampling_rate
    return resample(audio, file_sampling_rate, sampling_rate), sampling_rate


def to_mono(audio) -> np.ndarray:
    """Averages the channels of a sound: (N,) or (C, N) to (N,)."""
    audio = _as_samples(audio)
    return audio if audio.ndim == 1 else audio.mean(axis=0)


def resample(audio, orig_sampling_rate: int, sampling_rate: int) -> np.ndarray:
    """Resamples by windowed-sinc interpolation with the filter that AudioCraft uses (`julius.resample_frac`).

    The same filter matters: another good resampler differs in the transition band, enough to change EnCodec's codes.
    The filter is a sinc with 24 zero crossings a side, its cutoff at 0.945 of the lower Nyquist frequency, under a
    squared-cosine (Hann) window; each end of the sound is held beyond it. See J. O. Smith, Digital Audio Resampling,
    https://ccrma.stanford.edu/~jos/resample/.

    Args:
        audio: Sound of shape (N,) or (C, N).
        orig_sampling_rate: Its sampling rate in Hz.
        sampling_rate: The rate wanted, in Hz.

    Returns:
        float32 samples of shape (M,) or (C, M), M = floor(N * sampling_rate / orig_sampling_rate), at least 1.
    """
    audio = _as_samples(audio)
    _check_sampling_rate("orig_sampling_rate", orig_sampling_rate)
    _check_sampling_rate("sampling_rate", sampling_rate)
    if orig_sampling_rate == sampling_rate:
        return audio

    from scipy.signal import resample_poly

    divisor = math.gcd(orig_sampling_rate, sampling_rate)
    up, down = sampling_rate // divisor, orig_sampling_rate // divisor
    length = max(1, audio.shape[-1] * up // down)
    # resample_poly multiplies the filter by `up`; ours already has unit gain.
    resampled = resample_poly(audio, up, down, axis=-1, window=_resampling_filter(up, down) / up, padtype="edge")
    return resampled[..., :length].astype(np.float32)


@lru_cache(maxsize=16)
def _resampling_filter(up: int, down: int, zeros: int = 24, rolloff: float = 0.945) -> np.ndarray:
    """The prototype filter at `up` times the original rate, of odd length and symmetric, each phase summing to 1."""
    cutoff = rolloff / max(up, down)
    half_length = math.ceil(zeros / cutoff)
    t = np.arange(-half_length, half_length + 1) * cutoff
    taps = np.sinc(t) * np.cos(np.pi / 2 * np.clip(t / zeros, -1, 1)) ** 2
    phase = np.arange(taps.size) % up
    return taps / np.bincount(phase, weights=taps)[phase]


def convert_audio(audio, orig_sampling_rate: int, sampling_rate: int, channels: int) -> np.ndarray:
    """Brings a sound to the sampling rate and the number of channels of a model, as AudioCraft does.

    One channel is the mean of all; a mono sound is repeated for every channel; of more channels than wanted the first
    are kept.

    Args:
        audio: Sound of shape (N,) or (C, N).
        orig_sampling_rate: Its sampling rate in Hz.
        sampling_rate: The rate wanted, in Hz.
        channels: The number of channels wanted.

    Returns:
        float32 samples of shape (channels, M), M as in [`resample`].

    Raises:
        ValueError: The sound has several channels, yet fewer than wanted.
    """
    audio = np.atleast_2d(_as_samples(audio))
    if channels == 1:
        audio = audio.mean(axis=0, keepdims=True)
    elif len(audio) == 1:
        audio = audio.repeat(channels, axis=0)
    elif len(audio) < channels:
        raise ValueError(
            f"audio has {len(audio)} channels; {channels} can be made of one channel or of {channels} or more"
        )
    return resample(audio[:channels], orig_sampling_rate, sampling_rate)


def measure_loudness(audio, sampling_rate: int) -> float:
    """Integrated loudness in LUFS by ITU-R BS.1770-4, -inf for silence.

    A sound shorter than the standard's 400 ms block is measured in one block, followed by silence: as a meter shows it
    that hears nothing else.
    """
    import pyloudnorm

    audio = np.atleast_2d(_as_samples(audio))
    _check_sampling_rate("sampling_rate", sampling_rate)
    missing = math.ceil(LOUDNESS_BLOCK_SECONDS * sampling_rate) - audio.shape[1]
    audio = np.pad(audio, ((0, 0), (0, max(0, missing))))
    return float(pyloudnorm.Meter(sampling_rate).integrated_loudness(audio.T.astype(np.float64)))


def normalize_audio(
    audio,
    sampling_rate: int,
    strategy: str = "peak",
    *,
    peak_clip_headroom_db: float = 1,
    rms_headroom_db: float = 18,
    loudness_headroom_db: float = 14,
    loudness_compressor: bool = False,
    only_attenuate: bool = False,
    log_clipping: bool = False,
) -> np.ndarray:
    """Brings a sound to a level, by the strategies of AudioCraft's `audio_write`.

    - `"loudness"`: gain to `-loudness_headroom_db` LUFS ([`measure_loudness`]), then `tanh` if `loudness_compressor`,
      then clip at ±1. A sound with an RMS under 0.002 is left alone: what would be raised is mostly noise.
    - `"peak"`: gain that puts the largest sample at `-peak_clip_headroom_db` dB.
    - `"clip"`: no gain, clip at `-peak_clip_headroom_db` dB.
    - `"rms"`: gain that puts the RMS of the downmix at `-rms_headroom_db` dB, then clip at ±1.
    - `"none"`: the samples as they are; beyond ±1 they are an error.

    Silence stays silence. AudioCraft's loudness meter clips what it measures and so under-measures a sound beyond full
    scale; this one does not.

    Args:
        audio: Sound of shape (N,) or (C, N).
        sampling_rate: Its sampling rate in Hz.
        strategy: One of the strategies above.
        peak_clip_headroom_db: Decibels under full scale of `"peak"` and `"clip"`.
        rms_headroom_db: Decibels under full scale of `"rms"`.
        loudness_headroom_db: Decibels under full scale of `"loudness"`: 14 gives -14 LUFS.
        loudness_compressor: Whether `"loudness"` ends with a soft clip by `tanh`.
        only_attenuate: Whether `"peak"` and `"rms"` leave alone what is quieter than their level.
        log_clipping: Whether to warn of the samples that `"loudness"` and `"rms"` clip.

    Returns:
        float32 samples of the same shape.
    """
    audio = _as_samples(audio)
    _check_sampling_rate("sampling_rate", sampling_rate)
    peak = np.abs(audio).max()
    peak_level = _amplitude(-peak_clip_headroom_db)
    if strategy == "clip":
        return audio.clip(-peak_level, peak_level)
    if strategy == "none":
        if peak > 1:
            raise ValueError(f'audio peaks at {peak:.3g}, beyond full scale; strategy="none" takes at most 1')
        return audio
    if strategy == "peak":
        return audio * _gain(peak_level, peak, only_attenuate)
    if strategy == "rms":
        audio = audio * _gain(_amplitude(-rms_headroom_db), _rms(to_mono(audio)), only_attenuate)
    elif strategy == "loudness":
        audio = _normalize_loudness(audio, sampling_rate, -loudness_headroom_db, loudness_compressor)
    else:
        raise ValueError(f"strategy must be one of {', '.join(NORMALIZATION_STRATEGIES)}; got {strategy!r}")
    clipped = np.abs(audio) > 1
    if log_clipping and clipped.any():
        logger.warning("clipping %.3g %% of the samples, peak %.3g", 100 * clipped.mean(), np.abs(audio).max())
    return audio.clip(-1, 1)


def _normalize_loudness(audio: np.ndarray, sampling_rate: int, target_lufs: float, compressor: bool) -> np.ndarray:
    if _rms(audio) < LOUDNESS_RMS_FLOOR:
        return audio
    loudness = measure_loudness(audio, sampling_rate)
    # Under the hearing range a sound may have an RMS, yet no loudness.
    if not math.isfinite(loudness):
        return audio
    audio = audio * _amplitude(target_lufs - loudness)
    return np.tanh(audio) if compressor else audio


def _amplitude(decibels: float) -> float:
    return 10 ** (decibels / 20)


def _rms(audio: np.ndarray) -> float:
    return math.sqrt(np.square(audio, dtype=np.float64).mean())


def _gain(target: float, level: float, only_attenuate: bool) -> float:
    """The factor that brings `level` to `target`; 1 for silence, denormal numbers included."""
    if level < np.finfo(np.float32).tiny or (only_attenuate and level <= target):
        return 1.0
    return float(target / level)


def write_audio(
    path: str | os.PathLike,
    audio,
    sampling_rate: int,
    *,
    format: str | None = None,
    strategy: str = "loudness",
    loudness_compressor: bool = True,
    metadata: dict[str, Any] | None = None,
    mp3_rate: int = 320,
    add_suffix: bool = True,
    **normalization,
) -> Path:
    """Writes a sound to a file, by default at -14 LUFS with the soft clip, as AudioGen's documentation does.

    The file appears whole or not at all: it is written under another name beside its place, then renamed. Missing
    folders are made.

    Args:
        path: Where to write. Its suffix says the format, unless `format` does.
        audio: Sound of shape (N,) or (C, N).
        sampling_rate: Its sampling rate in Hz.
        format: `"wav"` (16 bits; the default for a path without a suffix), `"flac"` (16 bits), `"ogg"` (Vorbis) or
            `"mp3"`.
        strategy: How to set the level, see [`normalize_audio`].
        loudness_compressor: Whether the strategy `"loudness"` ends with a soft clip.
        metadata: What to say of the sound: prompt, seed, model, parameters. It becomes the file's comment, as JSON
            (values unknown to JSON as strings), and its `"prompt"` the title. [`read_metadata`] reads it back.
        mp3_rate: Constant bit rate of an mp3 in kbit/s, or the nearest that its sampling rate allows (16 kHz: 160).
        add_suffix: Whether to append the suffix of `format` to a path that does not end with it.
        normalization: The other arguments of [`normalize_audio`].

    Returns:
        The path of the file written.

    Raises:
        ValueError: A bad argument, such as an empty sound or samples that are not finite.
        OSError: The place cannot be written to.
    """
    path, format = _resolve_format(Path(path), format, add_suffix)
    audio = normalize_audio(audio, sampling_rate, strategy, loudness_compressor=loudness_compressor, **normalization)
    _write_file(path, _encode(audio, sampling_rate, format, metadata, mp3_rate))
    return path


def _resolve_format(path: Path, format: str | None, add_suffix: bool) -> tuple[Path, str]:
    suffix = path.suffix[1:].lower()
    if format is None and suffix and suffix not in AUDIO_FORMATS:
        raise ValueError(
            f"path {path} has the suffix .{suffix}; it takes .{', .'.join(AUDIO_FORMATS)}, any other with format=..."
        )
    format = (format or suffix or "wav").lower()
    if format not in AUDIO_FORMATS:
        raise ValueError(f"format must be one of {', '.join(AUDIO_FORMATS)}; got {format!r}")
    if add_suffix and suffix != format:
        path = path.with_name(f"{path.name}.{format}")
    return path, format


def _encode(audio: np.ndarray, sampling_rate: int, format: str, metadata: dict | None, mp3_rate: int) -> bytes:
    """The bytes of a sound file that holds `audio` (full scale at ±1) and `metadata`."""
    import soundfile

    tags = {} if metadata is None else _tags(metadata)
    options = {}
    if format in ("wav", "flac"):
        options = {"subtype": "PCM_16"}
    elif format == "mp3":
        options = {"compression_level": _mp3_compression_level(sampling_rate, mp3_rate), "bitrate_mode": "CONSTANT"}

    buffer = BytesIO()
    frames = np.atleast_2d(audio).T
    channels = frames.shape[1]
    try:
        with soundfile.SoundFile(buffer, "w", sampling_rate, channels, format=format, **options) as sound:
            if format != "mp3":
                for name, value in tags.items():
                    setattr(sound, name, value)
            # libsndfile's Vorbis encoder puts what one call writes on the stack: ten minutes at once kill the process.
            for start in range(0, len(frames), 1 << 16):
                sound.write(frames[start : start + (1 << 16)])
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{format} cannot hold {channels} channels at {sampling_rate} Hz: {error}") from error
    # libsndfile declares UTF-8 text as Latin-1 in an mp3, so that our own tag goes before its frames.
    return (_id3_tag(tags) if format == "mp3" and tags else b"") + buffer.getvalue()


def _tags(metadata: dict[str, Any]) -> dict[str, str]:
    """libsndfile's names of the tags and what goes into them."""
    if not isinstance(metadata, dict):
        raise ValueError(f"metadata must be a dict, got {type(metadata).__name__}")
    tags = {"comment": json.dumps(metadata, ensure_ascii=False, default=str), "software": "audiogen_hf"}
    if metadata.get("prompt"):
        tags["title"] = str(metadata["prompt"])
    return tags


def _mp3_compression_level(sampling_rate: int, mp3_rate: int) -> float:
    """The level that gives a constant bit rate: libsndfile goes linearly from the highest (0) to the lowest (1).

    The bounds are those of MPEG-1, MPEG-2 and MPEG-2.5 layer III, by sampling rate.
    """
    if sampling_rate not in MP3_SAMPLING_RATES:
        raise ValueError(
            f"an mp3 has a sampling rate of {', '.join(map(str, MP3_SAMPLING_RATES))} Hz; got {sampling_rate}"
        )
    if mp3_rate <= 0:
        raise ValueError(f"mp3_rate must be positive, got {mp3_rate}")
    lowest, highest = (32, 320) if sampling_rate >= 32000 else (8, 160) if sampling_rate >= 16000 else (8, 64)
    # libsndfile refuses the level 1; 0.99 still rounds to the lowest bit rate.
    return float(np.clip((highest - mp3_rate) / (highest - lowest), 0, 0.99))


def _id3_tag(tags: dict[str, str]) -> bytes:
    """An ID3v2.4 tag in UTF-8 (https://id3.org/id3v2.4.0-structure and -frames)."""

    def syncsafe(size: int) -> bytes:
        return bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0))

    def frame(name: str, text: str) -> bytes:
        language_and_description = b"und\0" if name == "COMM" else b""
        content = b"\x03" + language_and_description + text.encode()
        return name.encode() + syncsafe(len(content)) + b"\0\0" + content

    names = {"title": "TIT2", "comment": "COMM", "software": "TSSE"}
    frames = b"".join(frame(names[tag], text) for tag, text in tags.items())
    return b"ID3\x04\0\0" + syncsafe(len(frames)) + frames


def _write_file(path: Path, content: bytes) -> None:
    """Makes `path` hold `content`, whole or not at all."""
    temporary = path.parent / f".{uuid.uuid4().hex}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(content)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise type(error)(f"cannot write {path}: {error}") from error


def read_metadata(path: str | os.PathLike) -> dict[str, Any]:
    """What [`write_audio`] was given as `metadata` for this file; empty where its comment is not such a record."""
    with _open_sound(path) as sound:
        # libsndfile does not read a comment of 2 kB or more from a wav, though it writes it.
        comment = _wav_comment(path) if sound.format == "WAV" else sound.comment
    try:
        metadata = json.loads(comment)
    except ValueError:
        return {}
    return metadata if isinstance(metadata, dict) else {}


def _wav_comment(path: str | os.PathLike) -> str:
    """The text of the ICMT chunk in the INFO list of a RIFF file, empty where there is none."""

    def chunks(file: BinaryIO, end: int) -> Iterator[tuple[bytes, int]]:
        while file.tell() + 8 <= end:
            name, size = struct.unpack("<4sI", file.read(8))
            following = file.tell() + size + size % 2
            yield name, size
            file.seek(following)

    with open(path, "rb") as file:
        length = file.seek(0, os.SEEK_END)
        file.seek(12)  # RIFF, its size, WAVE
        for name, size in chunks(file, length):
            if name == b"LIST" and file.read(4) == b"INFO":
                for tag, tag_size in chunks(file, min(length, file.tell() + size - 4)):
                    if tag == b"ICMT":
                        return file.read(tag_size).rstrip(b"\0").decode(errors="replace")
    return ""


@contextmanager
def _open_sound(path_or_file: str | os.PathLike | BinaryIO) -> Iterator:
    """A `soundfile.SoundFile` open for reading, whose errors say what is wrong with the file."""
    import soundfile

    if isinstance(path_or_file, (str, os.PathLike)) and not Path(path_or_file).is_file():
        raise FileNotFoundError(f"no such sound file: {path_or_file}")
    try:
        with soundfile.SoundFile(path_or_file) as sound:
            yield sound
    # A TypeError tells of headerless files (.raw), which need what only their maker knows.
    except (soundfile.LibsndfileError, TypeError) as error:
        raise ValueError(f"cannot decode {path_or_file}: {error}") from error


def _as_samples(audio) -> np.ndarray:
    """Finite float32 samples of shape (N,) or (C, N), N > 0, of whatever holds them."""
    if hasattr(audio, "detach"):
        audio = audio.detach().cpu()
        audio = (audio.float() if audio.is_floating_point() else audio).numpy()  # NumPy has no bfloat16
    audio = np.asarray(audio)
    if audio.ndim not in (1, 2):
        raise ValueError(f"audio must have the shape (N,) or (C, N), got {audio.shape}: pass one sound at a time")
    if audio.size == 0:
        raise ValueError(f"audio is empty, of shape {audio.shape}")
    if audio.ndim == 2 and audio.shape[0] > audio.shape[1]:
        raise ValueError(f"audio of shape {audio.shape} has more channels than samples: channels come first")
    if audio.dtype in (np.int16, np.int32):
        audio = audio / -float(np.iinfo(audio.dtype).min)
    elif not np.issubdtype(audio.dtype, np.floating):
        raise ValueError(f"audio must hold floating samples or 16 or 32-bit integers, got {audio.dtype}")
    with np.errstate(over="ignore"):  # becomes infinite, which the next line reports
        audio = audio.astype(np.float32, copy=False)
    if not np.isfinite(audio).all():
        raise ValueError("audio holds NaN or infinite samples")
    return audio


def _check_sampling_rate(name: str, value: int) -> None:
    if not isinstance(value, (int, np.integer)) or value <= 0:
        raise ValueError(f"{name} must be a positive integer (Hz), got {value!r}")
