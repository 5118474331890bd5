import numpy as np
import pytest
import torch

import audiogen_hf.data
from audiogen_hf import AudioGenProcessor
from audiogen_hf.data import (
    ClipCollator,
    ClipDataset,
    ClipLoader,
    ClipReader,
    ClipStream,
    MixedClips,
    Mixing,
    frame_mask,
    load_audio_text_dataset,
)

from .conftest import RATE, make_codec


def take(loader, count):
    return [batch for _, batch in zip(range(count), loader, strict=False)]


def assert_same_batches(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert torch.equal(a[key], b[key]), key


@pytest.fixture
def rows(folder):
    (folder / "2.wav").write_bytes(b"no sound")  # batches must be the same with replacements, too
    return load_audio_text_dataset(folder)


@pytest.fixture
def make_loader(rows, tokenizer):
    def make(seed=0, mixing=Mixing(aug_p=0.5, mix_p=0.5), batch_size=4, **kwargs):  # noqa: B008 (frozen)
        clips = ClipDataset(rows, ClipReader(RATE, 0.5), seed=seed)
        if mixing is not None:
            clips = MixedClips(clips, mixing, batch_size)
        return ClipLoader(clips, ClipCollator(tokenizer), batch_size, **kwargs)

    return make


def test_a_batch_is_as_documented(make_loader, tokenizer):
    (batch,) = take(make_loader(mixing=None), 1)
    assert {key: (tuple(value.shape), value.dtype) for key, value in batch.items()} == {
        "input_ids": ((4, batch["input_ids"].shape[1]), torch.int64),
        "attention_mask": ((4, batch["input_ids"].shape[1]), torch.int64),
        "input_values": ((4, 1, RATE // 2), torch.float32),
        "padding_mask": ((4, RATE // 2), torch.bool),
    }
    texts = tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
    for text, audio in zip(texts, batch["input_values"][:, 0], strict=True):  # sound and text stay together
        frequency = 2 * int(np.argmax(np.abs(np.fft.rfft(audio))))
        assert text == f"tone {frequency // 200 - 1}"


def test_the_processor_makes_an_empty_text_the_null_prompt(checkpoint):
    processor = AudioGenProcessor.from_pretrained(checkpoint, text_encoder=str(checkpoint / "t5"))
    clips = [{"audio": np.ones(4, np.float32), "length": 4, "text": text, "num_skipped": 0} for text in ("a dog", "")]
    batch = ClipCollator(processor)(clips)
    assert batch["attention_mask"].sum(dim=1).tolist()[1] == 0 < batch["attention_mask"].sum(dim=1).tolist()[0]


def test_whole_sounds_are_padded_to_the_longest_with_a_mask(rows, tokenizer):
    clips = ClipDataset(rows, ClipReader(RATE, None), shuffle=False)
    batch = ClipCollator(tokenizer)([clips[0], clips[1]])
    assert batch["input_values"].shape == (2, 1, 19200)
    assert batch["padding_mask"].sum(dim=1).tolist() == [16000, 19200]
    assert not batch["input_values"][0, 0, 16000:].any()


@pytest.mark.parametrize("num_workers", [1, 2])
def test_the_number_of_workers_changes_nothing(make_loader, num_workers):
    assert_same_batches(take(make_loader(), 5), take(make_loader(num_workers=num_workers), 5))


def test_the_number_of_processes_changes_nothing(make_loader):
    whole = take(make_loader(), 5)
    parts = [take(make_loader(num_processes=2, process_index=index), 5) for index in range(2)]
    for batch, first, second in zip(whole, *parts, strict=True):
        assert torch.equal(batch["input_values"], torch.cat([first["input_values"], second["input_values"]]))
        assert torch.equal(batch["padding_mask"], torch.cat([first["padding_mask"], second["padding_mask"]]))


def test_another_seed_gives_other_batches(make_loader):
    (first,), (second,) = take(make_loader(), 1), take(make_loader(seed=1), 1)
    assert not torch.equal(first["input_values"], second["input_values"])


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("taken", [0, 1, 3])
def test_a_loader_goes_on_after_the_last_batch_taken(make_loader, taken, num_workers):
    whole = make_loader()
    batches = take(whole, 6)
    first = make_loader(num_workers=num_workers)  # workers read ahead: that must not count
    take(first, taken)
    second = make_loader(num_workers=num_workers)
    second.load_state_dict(first.state_dict())
    assert_same_batches(take(second, 6 - taken), batches[taken:])
    assert second.num_skipped == whole.num_skipped > 0


def test_going_on_decodes_no_clip_again(rows, tokenizer):
    numbers = []

    class CountingClips(ClipDataset):
        def __getitem__(self, number):
            numbers.append(number)
            return super().__getitem__(number)

    loader = ClipLoader(CountingClips(rows, ClipReader(RATE, 0.5)), ClipCollator(tokenizer), 4)
    loader.load_state_dict({"next_batch": 1000, "num_skipped": 0})
    take(loader, 1)
    assert numbers == [4000, 4001, 4002, 4003]


def test_a_loader_of_a_stream_goes_on_too(folder, tokenizer):
    def make():
        rows = load_audio_text_dataset(folder, streaming=True)
        clips = ClipStream(rows, ClipReader(RATE, 0.5), shuffle_buffer=4, num_threads=2)
        return ClipLoader(clips, ClipCollator(tokenizer), 3)

    whole = take(make(), 6)
    first, second = make(), make()
    take(first, 4)
    second.load_state_dict(first.state_dict())
    assert_same_batches(take(second, 2), whole[4:])


def test_the_state_passes_through_accelerate(make_loader, tmp_path):
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    loader = make_loader()
    accelerator.register_for_checkpointing(loader)
    take(loader, 2)
    accelerator.save_state(str(tmp_path / "state"))
    expected = take(loader, 2)
    accelerator.load_state(str(tmp_path / "state"))
    assert_same_batches(take(loader, 2), expected)


@pytest.mark.parametrize("num_processes", [1, 3])
def test_evaluation_sees_each_clip_once_in_batches_of_one_size(rows, tokenizer, num_processes):
    seen, sizes = [], []
    for index in range(num_processes):
        clips = ClipDataset(rows, ClipReader(RATE, 0.5), shuffle=False)
        loader = ClipLoader.evaluation(
            clips, ClipCollator(tokenizer), 6, num_processes=num_processes, process_index=index, num_workers=1
        )
        assert len(loader) == 2
        for _ in range(2):  # every pass is the same
            batches = list(loader)
            assert len(batches) == 2
        sizes += [len(batch["input_ids"]) for batch in batches]
        for batch in batches:
            texts = tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
            seen += [text for text, mask in zip(texts, batch["padding_mask"], strict=True) if mask.any()]
            assert not batch["input_values"][~batch["padding_mask"].any(dim=1)].any()
    assert sorted(seen) == [f"tone {i}" for i in range(8) if i != 2]
    assert set(sizes) == {6 // num_processes}


def test_a_loader_without_end_has_no_length(make_loader):
    with pytest.raises(TypeError, match="has no end"):
        len(make_loader())


@pytest.mark.parametrize(
    ("lengths", "num_samples", "real_frames"),
    [([640, 0, 319, 320, 639], 640, [2, 0, 0, 1, 1]), ([700, 699, 640], 700, [3, 2, 2])],
)
def test_frames_with_a_padded_sample_are_masked(lengths, num_samples, real_frames):
    padding_mask = torch.arange(num_samples) < torch.tensor(lengths)[:, None]
    mask = frame_mask(padding_mask, 320)
    assert mask.shape == (len(lengths), -(-num_samples // 320)) and mask.dtype == torch.bool
    assert mask.sum(dim=1).tolist() == real_frames


def test_the_frame_mask_fits_the_codes_of_the_codec():
    codec = make_codec()
    for num_samples in (320, 321, 700, 16000):
        codes = codec.encode(torch.zeros(1, 1, num_samples)).audio_codes
        assert frame_mask(torch.ones(1, num_samples, dtype=torch.bool), 320).shape[-1] == codes.shape[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size 0 must be a positive multiple of the 1 processes"),
        ({"batch_size": 3, "num_processes": 2}, "batch_size 3 must be a positive multiple of the 2 processes"),
        ({"process_index": 1}, r"process_index must be in \[0, 1\), got 1"),
        ({"num_batches": 0}, "num_batches must be at least 1 or None, got 0"),
        ({"num_workers": -1}, "num_workers must not be negative, got -1"),
    ],
)
def test_bad_loader_settings_are_refused(make_loader, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_loader(mixing=None, **arguments)


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'audiogen_hf\[training\]'"):
        audiogen_hf.data.ClipDataset  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'Clips'"):
        audiogen_hf.data.Clips  # noqa: B018


def test_every_public_name_exists():
    assert all(getattr(audiogen_hf.data, name) for name in audiogen_hf.data.__all__)
