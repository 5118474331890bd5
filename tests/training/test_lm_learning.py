"""The language model learns: exact gradients however a batch is split, clips by heart, LoRA on a frozen base."""

import pytest
import torch
from lm_utils import SOUNDS, from_scratch, read_log, train, weights
from testing_utils import PROMPTS, load_model

from audiogen_hf import AudioGenForConditionalGeneration
from audiogen_hf.audiocraft_state_dict import lm_state_to_audiocraft
from audiogen_hf.data import ClipCollator, ClipDataset
from audiogen_hf.training.lm.data import Inputs, encode_batch, open_clips
from audiogen_hf.training.lm.model import LanguageModel

# PEFT reads an attribute that transformers has renamed.
PEFT_WARNS = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
ADAPTER = {"lora_rank": 4, "learning_rate": 1e-2, "max_steps": 12, "save_steps": 12, "warmup_steps": 1}


@pytest.mark.parametrize("num_parts", [1, 3])
def test_loss_and_every_gradient_are_audiocrafts_whole_and_in_parts(processor, reference, num_parts):
    model = load_model(attend_to_text_padding=True)
    model.freeze_text_encoder()
    language_model = LanguageModel(model)
    texts = processor(text=PROMPTS)
    with torch.no_grad():
        states = model.text_encoder(**texts).last_hidden_state
    inputs = Inputs(states, texts["attention_mask"], reference["tf/codes"])
    num_targets = model.count_targets(inputs.labels)
    assert num_targets.tolist() == [3 * frames for frames in (20, 19, 18, 17)]

    losses = []
    for part in inputs.split(num_parts):
        loss, per_codebook = language_model(**part, num_targets=num_targets)
        loss.backward()
        losses.append(per_codebook)
    torch.testing.assert_close(sum(losses), reference["tf/ce_per_codebook"], rtol=2e-5, atol=0)

    decoder = model.config.decoder
    gradients = {name: parameter.grad for name, parameter in language_model.named_parameters()}
    gradients = lm_state_to_audiocraft(gradients, decoder.num_hidden_layers, decoder.num_codebooks)
    expected = {name.removeprefix("grad/"): grad for name, grad in reference.items() if name.startswith("grad/")}
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_padded_cells_are_no_targets_whatever_part_they_fall_in(processor, reference):
    model = load_model(attend_to_text_padding=True)
    language_model = LanguageModel(model)
    texts = processor(text=PROMPTS)
    labels = reference["tf_padded/codes"]
    inputs = Inputs(model.text_encoder(**texts).last_hidden_state, texts["attention_mask"], labels)
    num_targets = model.count_targets(labels)
    with torch.no_grad():
        parts = [language_model(**part, num_targets=num_targets)[1] for part in inputs.split(3)]
    torch.testing.assert_close(sum(parts), reference["tf_padded/ce_per_codebook"], rtol=2e-5, atol=0)
    # Means of parts of unequal length are not the mean over all cells: the number of targets matters.
    with torch.no_grad():
        means = [language_model(**part)[1] for part in inputs.split(3)]
    assert (sum(means) / 3 - reference["tf_padded/ce_per_codebook"]).abs().max() > 1e-3


def test_eight_real_sounds_are_learned_by_heart(tmp_path, codec_folder, token_cache):
    trainer = train(
        tmp_path,
        **from_scratch(codec_folder),
        **{"train_data": str(token_cache), "validation_data": None, "segment_duration": 2.0, "batch_size": 8},
        **{"max_steps": 160, "save_steps": 160, "logging_steps": 20, "learning_rate": 5e-3, "warmup_steps": 20},
        **{"lr_schedule": "cosine", "weight_decay": 0.0},
    )
    model = AudioGenForConditionalGeneration.from_pretrained(tmp_path / "last")
    rows, reader = open_clips(str(SOUNDS / "train"), "train", trainer.args, model, streaming=False)
    batch = ClipCollator(trainer.processor)([ClipDataset(rows, reader, shuffle=False)[i] for i in range(8)])
    codes = encode_batch(model, batch, torch.device("cpu")).labels
    assert codes.shape == (8, 4, 100)
    assert min(len(clip.unique(dim=-1)[0]) for clip in codes) > 20  # sounds, not one code held
    generated = model.generate(
        batch["input_ids"],
        attention_mask=batch["attention_mask"],
        **{"audio_length_in_s": 2.0, "do_sample": False, "guidance_scale": 1.0, "return_dict_in_generate": True},
    )
    agreement = (generated.audio_codes == codes).float().mean(dim=(1, 2))
    # The last k frames of codebook k are no targets: 6 of 400 cells are never learned.
    assert agreement.min() >= 0.95, agreement


@PEFT_WARNS
def test_lora_improves_a_frozen_base_and_both_libraries_load_it(tmp_path, base_model):
    from peft import PeftModel

    trainer = train(tmp_path, model_name_or_path=str(base_model), **ADAPTER)
    losses = read_log(tmp_path, "train/ce")
    assert losses[-1] < losses[0] - 0.3
    assert (tmp_path / "last" / "adapter_model.safetensors").stat().st_size < 300_000
    assert not (tmp_path / "last" / "model.safetensors").exists()

    # The base has not moved, the adapters have.
    base = AudioGenForConditionalGeneration.from_pretrained(base_model)
    trained = dict(trainer.model.named_parameters())
    for name, parameter in base.named_parameters():
        layer, _, leaf = name.rpartition(".")
        assert torch.equal(parameter, trained.get(name, trained.get(f"{layer}.base_layer.{leaf}"))), name
    assert any(p.abs().max() > 0 for name, p in trained.items() if "lora_B" in name)

    # Loss on the validation sounds: PeftModel and load_adapter agree with the trainer.
    loader_batch = ClipCollator(trainer.processor)([trainer.validation_clips[i] for i in range(2)])
    inputs = encode_batch(base, loader_batch, torch.device("cpu"))

    def loss(model):
        with torch.no_grad():
            return LanguageModel(model).eval()(inputs.text_states, inputs.attention_mask, inputs.labels)[1]

    expected = torch.tensor([read_log(tmp_path, f"validation/ce_q{k}")[-1] for k in range(1, 5)])
    assert (loss(base) - expected).abs().max() > 0.1
    adapted = AudioGenForConditionalGeneration.from_pretrained(base_model)
    adapted.load_adapter(str(tmp_path / "last"))
    torch.testing.assert_close(loss(adapted), expected, rtol=1e-5, atol=1e-5)
    peft_model = PeftModel.from_pretrained(base, tmp_path / "last")
    torch.testing.assert_close(loss(peft_model.get_base_model()), expected, rtol=1e-5, atol=1e-5)
    assert peft_model.peft_config["default"].base_model_name_or_path == str(base_model)


@PEFT_WARNS
def test_a_merged_adapter_is_a_whole_model_of_the_same_loss(tmp_path, base_model):
    options = {**ADAPTER, "max_steps": 3, "save_steps": 3}
    train(tmp_path / "adapter", model_name_or_path=str(base_model), **options)
    train(tmp_path / "merged", model_name_or_path=str(base_model), merge_adapter=True, **options)
    adapted = AudioGenForConditionalGeneration.from_pretrained(base_model)
    adapted.load_adapter(str(tmp_path / "adapter" / "last"))
    merged = AudioGenForConditionalGeneration.from_pretrained(tmp_path / "merged" / "last")
    assert weights(tmp_path / "merged" / "last").keys() == weights(base_model).keys()
    columns = torch.randint(0, 64, (2, 7, 4))
    inputs = {"encoder_outputs": (torch.randn(2, 3, 32),), "decoder_input_ids": columns}
    with torch.no_grad():
        torch.testing.assert_close(merged(**inputs).logits, adapted(**inputs).logits, rtol=1e-4, atol=1e-5)


def test_another_peft_method_trains_by_its_own_configuration(tmp_path, base_model):
    from peft import IA3Config

    targets = {"target_modules": ["kv_proj", "fc2"], "feedforward_modules": ["fc2"]}
    IA3Config(**targets, inference_mode=True).save_pretrained(tmp_path / "ia3")  # as beside a trained adapter
    options = {"peft_config": str(tmp_path / "ia3"), "learning_rate": 0.1, "max_steps": 6, "save_steps": 6}
    train(tmp_path / "run", model_name_or_path=str(base_model), **options)
    losses = read_log(tmp_path / "run", "train/ce")
    assert losses[-1] < losses[0]
    adapted = AudioGenForConditionalGeneration.from_pretrained(base_model)
    adapted.load_adapter(str(tmp_path / "run" / "last"))
    assert adapted.peft_config["default"].peft_type == "IA3"


def test_adapters_that_reach_into_the_frozen_encoders_are_refused(tmp_path, base_model):
    from peft import LoraConfig

    LoraConfig(target_modules=["q_proj", "wi"]).save_pretrained(tmp_path / "lora")
    with pytest.raises(ValueError, match="peft_config: its target_modules reach into the encoders"):
        train(tmp_path / "run", model_name_or_path=str(base_model), peft_config=str(tmp_path / "lora"))


def test_parts_cover_a_batch_in_order():
    inputs = Inputs(torch.arange(4).float(), torch.arange(4) + 10, torch.arange(4) + 20)
    parts = list(inputs.split(2))
    assert [part["labels"].tolist() for part in parts] == [[20, 21], [22, 23]]
    assert [part["text_states"].tolist() for part in parts] == [[0, 1], [2, 3]]
