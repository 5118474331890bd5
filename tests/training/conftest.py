import pytest
import torch


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path_factory, monkeypatch):
    """`datasets` keeps what it prepares in a folder of the session."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")


@pytest.fixture(scope="session")
def codec_folder(tmp_path_factory):
    """The tiny checkpoint's tokenizer, as a folder of transformers."""
    from testing_utils import CHECKPOINT

    from audiogen_hf.training.lm.model import load_codec

    folder = tmp_path_factory.mktemp("codec")
    load_codec(str(CHECKPOINT)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def base_model(tmp_path_factory, codec_folder):
    """A model of random weights in this library's layout."""
    from lm_utils import TINY, from_scratch

    from audiogen_hf.training.lm.arguments import AudioGenTrainingArguments
    from audiogen_hf.training.lm.model import build_model

    torch.manual_seed(1)
    model, processor = build_model(AudioGenTrainingArguments(output_dir="", **TINY, **from_scratch(codec_folder)))
    folder = tmp_path_factory.mktemp("base")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def token_cache(tmp_path_factory, codec_folder):
    """The eight training sounds, whole (two seconds), as codes with the states of their texts."""
    from lm_utils import SOUNDS
    from testing_utils import TEXT_ENCODER
    from transformers import AutoModelForTextEncoding, AutoTokenizer, EncodecModel

    from audiogen_hf.data import load_audio_text_dataset, write_token_cache

    folder = tmp_path_factory.mktemp("cache")
    write_token_cache(
        folder,
        load_audio_text_dataset(SOUNDS / "train", cache_dir=tmp_path_factory.mktemp("datasets")),
        EncodecModel.from_pretrained(codec_folder),
        source="sounds",
        segment_duration=2.0,
        text_encoder=AutoModelForTextEncoding.from_pretrained(TEXT_ENCODER),
        processor=AutoTokenizer.from_pretrained(TEXT_ENCODER),
    )
    return folder
