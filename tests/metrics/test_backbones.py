"""Backbones: what they return, what they refuse, and what they say when they are not there."""

import sys

import numpy as np
import pytest
import torch
from testing_utils import FIXTURES

from audiogen_hf.audio_utils import read_audio
from audiogen_hf.metrics import BACKBONES, BackboneUnavailableError, load_backbone
from audiogen_hf.metrics.backbones import read_laion_checkpoint


@pytest.fixture(scope="module")
def yamnet():
    return load_backbone("yamnet")


@pytest.fixture(scope="module")
def tiny_clap(tmp_path_factory):
    """A CLAP of random weights with a tokenizer of a few words, as a folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, ClapProcessor, PreTrainedTokenizerFast

    words = ["<s>", "<pad>", "</s>", "<unk>", "a", "dog", "barks", "rain", "falls"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=16, **special)
    config = ClapConfig(
        text_config={
            "vocab_size": len(words),
            "hidden_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "max_position_embeddings": 32,
        },
        audio_config={
            "patch_embeds_hidden_size": 8,
            "depths": [1, 1],
            "num_attention_heads": [2, 2],
            "hidden_size": 16,
            "num_hidden_layers": 2,
        },
        projection_dim=12,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clap")
    ClapModel(config).eval().save_pretrained(folder)
    ClapProcessor(ClapFeatureExtractor(truncation="rand_trunc"), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny_ast(tmp_path_factory):
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("ast")
    config = ASTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=5)
    ASTForAudioClassification(config).eval().save_pretrained(folder)
    ASTFeatureExtractor().save_pretrained(folder)
    return folder


def noise(seconds: float, sampling_rate: int) -> np.ndarray:
    return (0.1 * np.random.default_rng(0).standard_normal(int(seconds * sampling_rate))).astype(np.float32)


@pytest.mark.parametrize("info", BACKBONES.values(), ids=BACKBONES)
def test_each_backbone_says_what_a_figure_depends_on(info):
    assert info.sampling_rate in (16_000, 32_000, 48_000)
    assert info.licence and info.checkpoint
    assert info.source.startswith("https://")


def test_tags_are_the_mean_over_windows_of_the_softmax(yamnet):
    samples = read_audio(FIXTURES / "metrics" / "fireworks.flac")[0]
    features = yamnet.audio_features(samples, 16_000)
    logits, embeddings = yamnet.model.model(torch.from_numpy(samples))
    assert features.embeddings.shape == (3, 1024)
    np.testing.assert_array_equal(features.embeddings, embeddings.numpy())
    np.testing.assert_allclose(features.probabilities, logits.softmax(dim=-1).mean(dim=0).numpy(), rtol=1e-6)
    assert features.probabilities.sum() == pytest.approx(1, abs=1e-5)


def test_clap_embeds_sounds_and_texts_in_one_space(tiny_clap):
    from transformers import AutoProcessor, ClapModel

    clap = load_backbone("clap", str(tiny_clap))
    sound, texts = noise(3, 48_000), ["a dog barks", "rain falls"]
    model, processor = ClapModel.from_pretrained(tiny_clap).eval(), AutoProcessor.from_pretrained(tiny_clap)
    with torch.no_grad():
        outputs = model(**processor(text=texts, audio=sound, sampling_rate=48_000, return_tensors="pt", padding=True))
    features = clap.audio_features(sound, 48_000)
    assert features.probabilities is None
    np.testing.assert_allclose(features.embeddings, outputs.audio_embeds.numpy(), atol=1e-5)
    np.testing.assert_allclose(clap.text_features(texts), outputs.text_embeds.numpy(), atol=1e-5)


def test_a_text_embeds_alone_as_in_a_batch(tiny_clap):
    clap = load_backbone("clap", str(tiny_clap))
    together = clap.text_features(["a dog barks", "rain"])
    np.testing.assert_allclose(clap.text_features(["rain"])[0], together[1], atol=1e-5)


def test_longer_sound_than_a_backbone_hears_is_cut_in_segments(tiny_ast):
    ast = load_backbone("ast", str(tiny_ast))
    sound = noise(20.1, 16_000)  # the last 0.1 s is too short to be heard
    features = ast.audio_features(sound, 16_000)
    first, second = (ast.audio_features(sound[start : start + 160_000], 16_000) for start in (0, 160_000))
    assert features.embeddings.shape == (2, 16)
    np.testing.assert_allclose(features.embeddings, np.vstack([first.embeddings, second.embeddings]), atol=1e-5)
    mean = (first.probabilities + second.probabilities) / 2
    np.testing.assert_allclose(features.probabilities, mean, atol=1e-6)


@pytest.mark.parametrize(
    ("samples", "sampling_rate", "message"),
    [
        (noise(1, 16_000), 44_100, "yamnet takes sound at 16000 Hz, got 44100 Hz"),
        (noise(0.1, 16_000), 16_000, r"N >= 2400, got \(1600,\)"),
        (np.zeros((2, 16_000)), 16_000, r"got \(2, 16000\)"),
        (np.full(16_000, np.nan), 16_000, "NaN"),
    ],
)
def test_sounds_that_cannot_be_heard_are_refused(yamnet, samples, sampling_rate, message):
    with pytest.raises(ValueError, match=message):
        yamnet.audio_features(samples, sampling_rate)


def test_texts_need_a_backbone_that_knows_texts(yamnet):
    with pytest.raises(ValueError, match="yamnet embeds no texts; use clap, laion_clap"):
        yamnet.text_features(["a dog"])


@pytest.mark.parametrize(
    ("name", "package", "message"),
    [
        ("vggish", "torchvggish", "pip install torchvggish"),
        ("passt", "hear21passt", "pip install hear21passt"),
        ("laion_clap", "laion_clap", "pip install laion_clap"),
    ],
)
def test_a_missing_package_is_named_with_the_way_to_get_it(monkeypatch, name, package, message):
    monkeypatch.setitem(sys.modules, package, None)  # what Python itself notes for "no such module"
    with pytest.raises(BackboneUnavailableError, match=message):
        load_backbone(name)


@pytest.mark.parametrize("name", ["ast", "clap"])
def test_weights_out_of_reach_are_named_with_the_place_to_get_them(name):
    with pytest.raises(BackboneUnavailableError, match=f"fetch them from {BACKBONES[name].source}"):
        load_backbone(name)


def test_names_and_checkpoints_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="one of yamnet, vggish, passt, ast, clap, laion_clap; got 'mp3'"):
        load_backbone("mp3")
    with pytest.raises(ValueError, match="yamnet has one set of weights"):
        load_backbone("yamnet", "other.safetensors")


class Malicious:
    def __reduce__(self):
        return exec, ("import sys; sys.pickle_has_run = True",)


def test_a_checkpoint_of_laion_is_read_without_running_it(tmp_path):
    state = {"module.logit_scale_a": torch.ones(1), "module.text_branch.embeddings.position_ids": torch.zeros(1)}
    torch.save({"epoch": 15, "name": "x", "state_dict": state, "best": np.float64(90.14)}, tmp_path / "good.pt")
    assert list(read_laion_checkpoint(tmp_path / "good.pt")) == ["logit_scale_a"]

    torch.save({"state_dict": state, "extra": Malicious()}, tmp_path / "bad.pt")
    with pytest.raises(Exception, match="Weights only load failed"):
        read_laion_checkpoint(tmp_path / "bad.pt")
    assert not hasattr(sys, "pickle_has_run")
