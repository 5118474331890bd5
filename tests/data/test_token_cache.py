import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import T5EncoderModel

from audiogen_hf import AudioGenForConditionalGeneration, AudioGenProcessor
from audiogen_hf.data import (
    ClipCollator,
    ClipDataset,
    ClipLoader,
    ClipReader,
    ClipStream,
    frame_mask,
    load_audio_text_dataset,
    load_coded_sound,
    load_token_cache,
    tokenizer_fingerprint,
    write_token_cache,
)

from .conftest import RATE, make_codec, tone, write_metadata_file, write_sound

EXAMPLE = Path(__file__).parents[2] / "examples" / "tokenize_dataset.py"


@pytest.fixture
def rows(folder):
    return load_audio_text_dataset(folder)


@pytest.fixture
def write(tmp_path, rows, codec):
    def write(folder="codes", rows=rows, codec=codec, **kwargs):
        arguments = {"segment_duration": 1.0, "rows_per_shard": 3, "batch_size": 3, "progress": False} | kwargs
        return tmp_path / folder, write_token_cache(tmp_path / folder, rows, codec, **arguments)

    return write


def contents(folder):
    tables = [pq.read_table(path).to_pylist() for path in sorted(folder.glob("shard-*.parquet"))]
    return [row for table in tables for row in table]


def test_cached_batches_are_those_of_the_sound_with_codes_in_its_place(rows, codec, tokenizer, write):
    folder, _ = write(min_segment_ratio=0.25)
    cached = ClipDataset(*load_token_cache(folder, codec), shuffle=False)
    clips = [clip for row in rows for clip in ClipReader(RATE, 1.0, min_segment_ratio=0.25).windows(row)]
    assert len(cached) == len(clips) == 15
    for clip in clips:
        clip["text"] = clip["text"][0]
    collate = ClipCollator(tokenizer)
    batch, expected = collate(list(cached)), collate(clips)
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    assert torch.equal(batch["attention_mask"], expected["attention_mask"])
    mask = frame_mask(expected["padding_mask"], 320)
    assert torch.equal(batch["frame_mask"], mask)
    assert mask.any(dim=1).all() and not mask.all()
    with torch.no_grad():
        codes = codec.encode(expected["input_values"], bandwidth=1.2).audio_codes[0]
    assert batch["audio_codes"].dtype == torch.int64
    assert torch.equal(batch["audio_codes"], codes * mask[:, None])


def test_a_cache_holds_16_bit_codes_texts_and_origins(folder, codec, write):
    write_metadata_file(folder, {f"{i}.wav": [f"tone {i}", "a tone"] for i in range(8)})
    path, description = write(rows=load_audio_text_dataset(folder))
    assert {key: description[key] for key in ("num_shards", "num_clips", "num_skipped", "num_frames")} == {
        "num_shards": 3,
        "num_clips": 11,
        "num_skipped": 0,
        "num_frames": 50,
    }
    assert str(pq.read_schema(path / "shard-00000.parquet").field("codes").type).count("uint16") == 1
    row = contents(path)[-1]
    assert row["text"] == ["tone 7", "a tone"] and row["path"].endswith("7.wav") and row["start"] == 1.0
    reader_rows, reader = load_token_cache(path, codec)
    drawn = {reader(reader_rows[0], np.random.default_rng(seed))["text"] for seed in range(20)}
    assert drawn == {"tone 0", "a tone"}


def test_fewer_codebooks_may_be_kept_and_read(codec, write):
    whole, _ = write()
    less, description = write("less", num_codebooks=2)
    assert description["num_codebooks"] == 2
    expected = ClipDataset(*load_token_cache(whole, codec, num_codebooks=2), shuffle=False)[0]["codes"]
    np.testing.assert_array_equal(ClipDataset(*load_token_cache(less, codec), shuffle=False)[0]["codes"], expected)
    with pytest.raises(ValueError, match="has 2 codebooks, not 4"):
        load_token_cache(less, codec, num_codebooks=4)


def test_text_states_are_those_of_the_text_encoder(folder, codec, checkpoint, write):
    write_metadata_file(folder, {f"{i}.wav": "" if i == 1 else "rain " * (i + 1) for i in range(8)})
    text_encoder = T5EncoderModel.from_pretrained(checkpoint / "t5").eval()
    processor = AudioGenProcessor.from_pretrained(checkpoint, text_encoder=str(checkpoint / "t5"))
    path, _ = write(rows=load_audio_text_dataset(folder), text_encoder=text_encoder, processor=processor)
    clips = ClipDataset(*load_token_cache(path, codec, text_encoder), shuffle=False)
    (batch,) = ClipLoader.evaluation(clips, ClipCollator(processor), batch_size=12)
    assert "input_ids" not in batch and len(clips) == 11  # and one clip that is padding throughout
    texts = [clip["text"] for clip in clips]
    inputs = processor(text=[*texts, ""], padding=True, return_tensors="pt")
    assert torch.equal(batch["attention_mask"], inputs["attention_mask"])
    with torch.no_grad():
        states = text_encoder(**inputs).last_hidden_state * inputs["attention_mask"][..., None]
    torch.testing.assert_close(batch["encoder_hidden_states"], states, atol=1e-5, rtol=1e-5)
    null = ClipCollator(processor)([clips[1]])
    assert null["encoder_hidden_states"].shape == (1, 1, states.shape[-1]) and null["attention_mask"].tolist() == [[0]]
    with torch.no_grad():
        next(text_encoder.parameters()).add_(1.0)
    with pytest.raises(ValueError, match="states of another text encoder"):
        load_token_cache(path, codec, text_encoder)


def test_an_interrupted_cache_goes_on_with_the_missing_shards(codec, write):
    folder, description = write()
    expected = contents(folder)
    (folder / "shard-00001.parquet").unlink()
    (folder / "shard-00002.parquet.tmp").write_bytes(b"cut short")
    unfinished = {key: value for key, value in description.items() if not key.startswith("num_s")}
    (folder / "token_cache.json").write_text(json.dumps(unfinished))
    with pytest.raises(ValueError, match="is not complete"):
        load_token_cache(folder, codec)
    untouched = (folder / "shard-00000.parquet").stat().st_mtime_ns
    assert write()[1] == description
    assert contents(folder) == expected
    assert (folder / "shard-00000.parquet").stat().st_mtime_ns == untouched


def test_a_stream_fills_the_same_shards(folder, rows, write):
    stream = load_audio_text_dataset(folder, streaming=True)
    first, second = write(rows=rows)[0], write("streamed", rows=stream)[0]
    assert contents(first) == contents(second)


def test_corrupt_and_silent_sounds_are_left_out_and_counted(tmp_path, codec, write):
    folder = tmp_path / "bad"
    write_sound(folder / "0.wav", tone(1.0))
    write_sound(folder / "1.wav", np.concatenate([tone(1.0), np.zeros(RATE, np.float32), tone(1.0)]))
    (folder / "2.wav").write_bytes(b"no sound")
    write_metadata_file(folder, {f"{i}.wav": f"tone {i}" for i in range(3)})
    path, description = write(rows=load_audio_text_dataset(folder))
    assert (description["num_clips"], description["num_skipped"]) == (3, 2)
    assert [row["start"] for row in contents(path)] == [0.0, 0.0, 2.0]
    (folder / "0.wav").write_bytes(b"no sound")
    (folder / "1.wav").write_bytes(b"no sound")
    with pytest.raises(ValueError, match="no clip of the dataset could be used: 3 are corrupt or silent"):
        write("none", rows=load_audio_text_dataset(folder))


def test_codes_of_another_tokenizer_are_refused(codec, write):
    folder, _ = write()
    with pytest.raises(ValueError, match=r"codes of another tokenizer \(16000 Hz, 4 codebooks of 64, fingerprint"):
        load_token_cache(folder, make_codec(seed=1))
    with pytest.raises(ValueError, match=r"made with tokenizer_fingerprint .* take another folder"):
        write(codec=make_codec(seed=1))
    with pytest.raises(ValueError, match=r"made with segment_duration 1\.0 instead of 2\.0"):
        write(segment_duration=2.0)


def test_the_fingerprint_follows_what_codes_depend_on_alone(tmp_path):
    codec = make_codec()
    fingerprint = tokenizer_fingerprint(codec)
    codec.save_pretrained(tmp_path)
    assert tokenizer_fingerprint(type(codec).from_pretrained(tmp_path)) == fingerprint
    with torch.no_grad():
        codec.decoder.layers[0].conv.bias.add_(1.0)
    assert tokenizer_fingerprint(codec) == fingerprint
    codec.config.use_causal_conv = True
    assert tokenizer_fingerprint(codec) != fingerprint
    codec.config.use_causal_conv = False
    with torch.no_grad():
        codec.quantizer.layers[3].codebook.embed[5, 0] += 1e-3
    assert tokenizer_fingerprint(codec) != fingerprint


def test_a_cache_can_be_streamed(codec, tokenizer, write):
    folder, _ = write()
    rows, reader = load_token_cache(folder, codec, streaming=True)
    loader = ClipLoader(ClipStream(rows, reader, shuffle_buffer=0), ClipCollator(tokenizer), batch_size=11)
    batch = next(iter(loader))
    expected = ClipDataset(*load_token_cache(folder, codec), shuffle=False)
    assert torch.equal(batch["audio_codes"], torch.stack([torch.from_numpy(clip["codes"]) for clip in expected]))


def test_bad_folders_are_refused(tmp_path, codec, write):
    with pytest.raises(ValueError, match="is no token cache"):
        load_token_cache(tmp_path, codec)
    folder, _ = write()
    (folder / "shard-00002.parquet").unlink()
    with pytest.raises(ValueError, match=r"lacks 1 of 3 shards, first shard-00002\.parquet"):
        load_token_cache(folder, codec)
    for arguments, message in (
        ({"num_codebooks": 5}, r"num_codebooks must be in \[1, 4\], got 5"),
        ({"batch_size": 0}, "batch_size and rows_per_shard must be at least 1, got 0 and 3"),
        ({"segment_duration": -1.0}, "segment_duration must be positive"),
        ({"text_encoder": codec}, "text_encoder needs a processor"),
    ):
        with pytest.raises(ValueError, match=message):
            write("new", **arguments)


def test_the_example_encodes_with_a_model_on_two_processes(folder, tmp_path, checkpoint):
    arguments = ["--dataset", folder, "--model", checkpoint, "--text_encoder", checkpoint / "t5", "--text_states"]
    sizes = ["--segment_duration", 1, "--rows_per_shard", 2, "--device", "cpu"]
    output = tmp_path / "codes"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", 2, EXAMPLE, *arguments]
    done = subprocess.run(
        [str(part) for part in [*command, *sizes, "--output", output]],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert f"{output}: 11 clips of 1.0 s in 4 shards, 0 corrupt or silent ones left out" in done.stdout

    model = AudioGenForConditionalGeneration.from_pretrained(checkpoint, text_encoder=str(checkpoint / "t5"))
    rows, reader = load_token_cache(output, model.audio_encoder, model.text_encoder)
    clips = ClipDataset(rows, reader, shuffle=False)
    sounds = [clip for row in load_audio_text_dataset(folder) for clip in ClipReader(RATE, 1.0).windows(row)]
    audio = torch.stack([torch.from_numpy(clip["audio"]) for clip in sounds])[:, None]
    with torch.no_grad():
        codes = model.encode_audio(audio)
    assert torch.equal(torch.stack([torch.from_numpy(clip["codes"]) for clip in clips]), codes)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--segment_duration", "0", "segment_duration must be positive or None, got 0.0"),
        ("--dataset", "nowhere.jsonl", "the manifest nowhere.jsonl does not exist"),
        ("--output", "file/codes", "folder file/codes cannot be written"),
    ],
)
def test_the_example_refuses_bad_input_in_one_line(
    folder, tmp_path, codec, monkeypatch, capsys, option, value, message
):
    codec.save_pretrained(tmp_path / "codec")
    (tmp_path / "file").write_text("in the way")
    options = {"--dataset": str(folder), "--codec": "codec", "--output": "codes", "--device": "cpu"} | {option: value}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *(part for pair in options.items() for part in pair)])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {message}")


def test_the_example_takes_a_codec_in_place_of_a_model(folder, tmp_path, codec):
    codec.save_pretrained(tmp_path / "codec")
    output = tmp_path / "codes"
    example = runpy.run_path(str(EXAMPLE))
    arguments = {"dataset": str(folder), "output": str(output), "segment_duration": 1.0, "device": "cpu"}
    example["main"](example["TokenizeArguments"](**arguments, codec=str(tmp_path / "codec")))
    assert len(load_token_cache(output, codec)[0]) == 11
    for wrong in ({}, {"codec": "a", "model": "b"}):
        with pytest.raises(ValueError, match="give either --model or --codec"):
            example["main"](example["TokenizeArguments"](**arguments, **wrong))
    with pytest.raises(ValueError, match="--text_states takes the text encoder of a --model"):
        example["main"](example["TokenizeArguments"](**arguments, codec="a", text_states=True))


def test_the_example_keeps_the_sound_of_chosen_rows_without_descriptions(tmp_path, codec):
    sounds = [write_sound(tmp_path / f"{i}.wav", tone(1.0, 300.0 * (i + 1))) for i in range(3)]
    columns = {"audio": [str(path) for path in sounds], "loud": [True, False, True]}
    datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "rows.parquet")
    codec.save_pretrained(tmp_path / "codec")
    arguments = ["--dataset", tmp_path / "rows.parquet", "--codec", tmp_path / "codec", "--output", tmp_path / "codes"]
    arguments += ["--segment_duration", 1, "--with_sound", "--without_text", "--filter_column", "loud"]
    done = subprocess.run([sys.executable, EXAMPLE, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows, _ = load_coded_sound(tmp_path / "codes", codec, 0.5)
    assert [Path(row["path"]).name for row in rows] == ["0.wav", "2.wav"]
    assert {tuple(row["text"]) for row in rows} == {("",)}
    assert "rows.parquet (train, loud)" in (tmp_path / "codes" / "token_cache.json").read_text()


def test_a_cache_may_keep_the_sound_and_gives_both_from_the_same_frame_on(tmp_path, codec, write):
    path, _ = write(with_sound=True, min_segment_ratio=0.25)
    whole = {(row["path"], row["start"]): row for row in contents(path)}
    rows, reader = load_coded_sound(path, codec, 0.5)
    assert (reader.num_frames, reader.hop_length) == (25, 320)
    assert len(rows) == sum(len(row["codes"][0]) >= 25 for row in whole.values()) < len(whole)  # the rest is shorter
    starts = set()
    for seed in range(40):
        row = rows[seed % len(rows)]
        clip = reader(row, np.random.default_rng(seed))
        codes = np.array(whole[row["path"], row["start"]]["codes"])
        places = [s for s in range(codes.shape[1] - 24) if np.array_equal(codes[:, s : s + 25], clip["codes"])]
        sound = np.frombuffer(row["sound"], "<i2").astype(np.float32) / 32767
        assert any(np.array_equal(sound[s * 320 :][:8000], clip["audio"][: len(sound) - s * 320]) for s in places)
        starts.update(places)
    assert len(starts) > 10
    original = load_audio_text_dataset(tmp_path / "sounds")
    (clip, *_) = ClipReader(RATE, 1.0).windows(original[0])
    np.testing.assert_allclose(np.frombuffer(contents(path)[0]["sound"], "<i2") / 32767, clip["audio"], atol=2e-5)
    batch = ClipCollator()([reader(rows[0], np.random.default_rng(0))] * 2)
    assert batch["audio_codes"].shape == (2, 4, 25) and batch["input_values"].shape == (2, 1, 8000)


def test_a_decoder_is_refused_a_cache_without_sound_or_with_shorter_clips(codec, write):
    with pytest.raises(ValueError, match="lacks the sound, or some of its codes: encode with with_sound"):
        load_coded_sound(write("plain")[0], codec, 0.5)
    with pytest.raises(ValueError, match="lacks the sound, or some of its codes"):
        load_coded_sound(write("less", with_sound=True, num_codebooks=2)[0], codec, 0.5)
    path, _ = write(with_sound=True)
    for duration in (1.1, 0.01):
        message = rf"segment_duration: got {duration} s, takes at least a frame \(320 samples\) and at most 1 s"
        with pytest.raises(ValueError, match=message):
            load_coded_sound(path, codec, duration)
