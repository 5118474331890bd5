"""The text encoder of audiogen-tiny: a smaller vocabulary, the same states."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoModelForTextEncoding, AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast

TINY = Path(__file__).parents[2] / "examples" / "tiny"
VOCABULARY = "[PAD] [UNK] [CLS] [SEP] [MASK] b a r k s ##a ##b ##k ##r ##s Ω ##ing ##king bark a barking rain"
VOCABULARY += " osnabruck uncharacteristically dog s"
WORDS = {"bark", "rain", "dog", "barking"}
KEPT = "[PAD] [UNK] [CLS] [SEP] [MASK] b a r k s ##a ##b ##k ##r ##s ##ing bark barking rain dog"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(TINY))
    yield importlib.import_module("build_text_encoder")
    sys.path.remove(str(TINY))


@pytest.fixture
def original():
    """A tiny BERT and the content of its tokenizer.json, laid out as the released one: texts of fixed length."""
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(VOCABULARY.split()))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    )
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer.enable_truncation(32)
    tokenizer.enable_padding(length=32, pad_token="[PAD]")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
    )
    return BertModel(config).eval(), json.loads(tokenizer.to_str())


def test_names_long_words_long_pieces_and_foreign_letters_leave(script, original):
    encoder, tokenizer = script.prune(*original, WORDS, longest_text=24)
    assert sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get) == KEPT.split()
    assert encoder.config.vocab_size == len(KEPT.split())
    assert tokenizer.tokenize("barks") == ["bark", "##s"]  # others are still read, in pieces
    assert tokenizer("bark")["input_ids"] == tokenizer.convert_tokens_to_ids(["[CLS]", "bark", "[SEP]"])


def test_texts_of_kept_tokens_have_the_states_of_the_original_after_saving(script, original, tmp_path):
    encoder, content = original
    before = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(content)), pad_token="[PAD]")
    texts = ["a dog barks", "rain"]
    with torch.no_grad():
        expected = [encoder(**before(text, padding=False, return_tensors="pt")).last_hidden_state for text in texts]
    pruned, tokenizer = script.prune(encoder, content, WORDS, longest_text=24)
    pruned.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    loaded, tokenizer = AutoModelForTextEncoding.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = loaded(**inputs).last_hidden_state
    for each, mask, by_original in zip(states, inputs["attention_mask"].bool(), expected, strict=True):
        torch.testing.assert_close(each[mask], by_original[0], rtol=0, atol=1e-5)
    assert tokenizer.model_max_length == 24


def test_the_words_of_captions_stay_and_those_held_out_do_not_count(script):
    words = script.caption_words()
    assert {"dog", "motorcycle", "thunderstorm"} <= words
    assert "bullseye" not in words  # "archery practice, the shaft lands in the bullseye" is held out
