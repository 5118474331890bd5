"""Helpers of the tests: the tiny checkpoint and variants of it, models of other shapes, a naive decoding loop."""

import hashlib
import json
import mmap
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import torch
import yaml

FIXTURES = Path(__file__).parent / "fixtures"
CHECKPOINT = FIXTURES / "audiocraft-tiny"
TEXT_ENCODER = CHECKPOINT / "t5"
LM_FILE, CODEC_FILE = "state_dict.bin", "compression_state_dict.bin"

# The texts of fixtures/reference.safetensors.
PROMPTS = [
    "A dog barking in the distance.",
    "rain",
    "A loud siren wailing on a gravel road, followed by silence while people talk near a busy street.",
]


def load_model(checkpoint: str | os.PathLike = CHECKPOINT, **kwargs):
    """A model of an AudioCraft checkpoint with the tiny text encoder."""
    from audiogen_hf import AudioGenForConditionalGeneration

    kwargs.setdefault("text_encoder", TEXT_ENCODER)
    return AudioGenForConditionalGeneration.from_pretrained(checkpoint, **kwargs).eval()


def generate_codes(model, inputs, **kwargs) -> torch.LongTensor:
    """Codes of `generate`, greedy with guidance 3 unless `kwargs` says otherwise."""
    kwargs = {"do_sample": False, "guidance_scale": 3.0, "return_dict_in_generate": True, **kwargs}
    return model.generate(**inputs, **kwargs).audio_codes


def tiny_config(**kwargs):
    """A small configuration: 32 codes a codebook, 2 layers of width 16, 50 frames a second, windows of 1 s.

    `decoder`, `text_encoder` and `audio_encoder` update those of the small configuration; others are of the whole.
    """
    from audiogen_hf import AudioGenConfig

    decoder = {
        "vocab_size": 32,
        "num_codebooks": 4,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        **kwargs.pop("decoder", {}),
    }
    text_encoder = {
        "model_type": "t5",
        "vocab_size": 1100,
        "d_model": 8,
        "d_kv": 4,
        "d_ff": 16,
        "num_layers": 1,
        "num_heads": 2,
        "dropout_rate": 0.0,
        **kwargs.pop("text_encoder", {}),
    }
    bits = (decoder["vocab_size"] - 1).bit_length()
    codebooks_a_channel = decoder["num_codebooks"] // decoder.get("audio_channels", 1)
    audio_encoder = {
        "model_type": "encodec",
        "sampling_rate": 16_000,
        "upsampling_ratios": [8, 5, 4, 2],
        "num_filters": 2,
        "hidden_size": 8,
        "codebook_size": decoder["vocab_size"],
        "codebook_dim": 8,
        "num_lstm_layers": 1,
        "target_bandwidths": [codebooks_a_channel * 50 * bits / 1000 + 1e-6],
        "pad_mode": "constant",
        "use_causal_conv": False,
        "use_conv_shortcut": False,
        "normalize": False,
        **kwargs.pop("audio_encoder", {}),
    }
    kwargs = {"segment_duration": 1.0, **kwargs}
    return AudioGenConfig(decoder=decoder, text_encoder=text_encoder, audio_encoder=audio_encoder, **kwargs)


def tiny_model(seed: int = 0, **kwargs):
    """A model of `tiny_config(**kwargs)` in which every parameter matters: none is left at zero or one."""
    from audiogen_hf import AudioGenForConditionalGeneration

    attn_implementation = kwargs.pop("attn_implementation", None)
    torch.manual_seed(seed)
    config = tiny_config(**kwargs)
    if attn_implementation is not None:
        config._attn_implementation = attn_implementation
    model = AudioGenForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        # Otherwise random weights of this size say the same code again and again, whatever they read.
        model.lm_head.weight.mul_(3)
        model.decoder.embed_tokens.weight.mul_(4)
        # Codes where the encoder's states are, so that sounds have codes of their own.
        states = model.audio_encoder.encoder(torch.randn(1, 1, 16_000))
        spread, centre = states.std(dim=-1), states.mean(dim=-1)
        for index, layer in enumerate(model.audio_encoder.quantizer.layers):
            layer.codebook.embed.normal_().mul_(spread).add_(centre if index == 0 else 0.0)
    return model


@torch.no_grad()
def naive_generate(
    model,
    input_ids: torch.LongTensor,
    attention_mask: torch.Tensor,
    num_frames: int,
    guidance_scale: float = 1.0,
    negative: tuple[torch.LongTensor, torch.Tensor] | None = None,
    prompt_codes: torch.LongTensor | None = None,
    choose: Callable[[torch.Tensor], torch.Tensor] = lambda logits: logits.argmax(dim=-1),
) -> torch.LongTensor:
    """The obvious loop that generation must equal, for one text: no cache, no batch, the delay cell by cell.

    `choose` turns the guided logits of a step, `(K, V)`, into codes `(K,)`.
    """
    decoder = model.config.decoder
    num_codebooks, delays = decoder.num_codebooks, decoder.codebook_delays
    codes = torch.full((num_codebooks, num_frames), -1)
    if prompt_codes is not None:
        codes[:, : prompt_codes.shape[-1]] = prompt_codes
    known = codes != -1

    def column(step: int) -> list[int]:
        frames = [step - 1 - delay for delay in delays]
        return [
            int(codes[k, frame]) if 0 <= frame < num_frames else decoder.vocab_size for k, frame in enumerate(frames)
        ]

    def scores(ids: torch.LongTensor, mask: torch.Tensor, columns: torch.LongTensor) -> torch.Tensor:
        return model(input_ids=ids, attention_mask=mask, decoder_input_ids=columns).logits[:, -1]

    columns = torch.tensor([[column(0)]])
    for step in range(1, 1 + num_frames + max(delays)):
        cells = [(k, step - 1 - delay) for k, delay in enumerate(delays) if 0 <= step - 1 - delay < num_frames]
        if any(not known[cell] for cell in cells):
            logits = scores(input_ids, attention_mask, columns)
            if guidance_scale != 1:
                other = negative or (input_ids, torch.zeros_like(attention_mask))
                unconditional = scores(*other, columns)
                logits = unconditional + (logits - unconditional) * guidance_scale
            chosen = choose(logits)
            for cell in cells:
                if not known[cell]:
                    codes[cell] = chosen[cell[0]]
        columns = torch.cat([columns, torch.tensor([[column(step)]])], dim=1)
    return codes


def rewrite_checkpoint(
    folder: Path,
    lm: Callable[[dict, dict], None] | None = None,
    codec: Callable[[dict, dict], None] | None = None,
    source: Path = CHECKPOINT,
) -> Path:
    """A copy of an AudioCraft checkpoint, changed by functions of `(state, xp)`, which edit both in place."""
    folder.mkdir(parents=True, exist_ok=True)
    for filename, change in ((LM_FILE, lm), (CODEC_FILE, codec)):
        package = torch.load(source / filename, weights_only=True)
        if change is not None:
            xp = yaml.safe_load(package["xp.cfg"])
            change(package["best_state"], xp)
            package["xp.cfg"] = yaml.safe_dump(xp, sort_keys=False)
        torch.save(package, folder / filename)
    return folder


def write_medium_checkpoint(folder: Path) -> Path:
    """An AudioCraft checkpoint of the size of `facebook/audiogen-medium`: 1.8 B random weights in half precision, its
    EnCodec, and a text encoder of the size of T5-large in `t5/`. Weights are drawn in the file itself, in mapped
    memory."""
    from transformers import EncodecModel, T5Config, T5EncoderModel

    from audiogen_hf import AudioGenConfig
    from audiogen_hf.audiocraft_state_dict import codec_state_to_audiocraft

    config = AudioGenConfig()
    decoder, codec = config.decoder, config.audio_encoder
    width = decoder.hidden_size
    shapes = {
        "condition_provider.conditioners.description.output_proj.weight": (width, 1024),
        "condition_provider.conditioners.description.output_proj.bias": (width,),
        **{f"emb.{k}.weight": (decoder.vocab_size + 1, width) for k in range(decoder.num_codebooks)},
        **{f"linears.{k}.weight": (decoder.vocab_size, width) for k in range(decoder.num_codebooks)},
        "out_norm.weight": (width,),
        "out_norm.bias": (width,),
    }
    for i in range(decoder.num_hidden_layers):
        for attention in ("self_attn", "cross_attention"):
            shapes[f"transformer.layers.{i}.{attention}.in_proj_weight"] = (3 * width, width)
            shapes[f"transformer.layers.{i}.{attention}.out_proj.weight"] = (width, width)
        shapes[f"transformer.layers.{i}.linear1.weight"] = (4 * width, width)
        shapes[f"transformer.layers.{i}.linear2.weight"] = (width, 4 * width)
        for norm in ("norm1", "norm2", "norm_cross"):
            shapes[f"transformer.layers.{i}.{norm}.weight"] = (width,)
            shapes[f"transformer.layers.{i}.{norm}.bias"] = (width,)

    lm_xp, codec_xp = (
        yaml.safe_load(torch.load(CHECKPOINT / filename, weights_only=True)["xp.cfg"])
        for filename in (LM_FILE, CODEC_FILE)
    )
    lm_xp["transformer_lm"].update(dim=width, num_heads=24, num_layers=48, card=decoder.vocab_size)
    lm_xp["dataset"]["segment_duration"] = 10
    codec_xp["seanet"].update(dimension=codec.hidden_size, n_filters=codec.num_filters, lstm=codec.num_lstm_layers)
    codec_xp["rvq"].update(bins=codec.codebook_size, n_q=codec.num_quantizers)
    state = {name: torch.empty(shape, dtype=torch.float16) for name, shape in shapes.items()}  # never touched
    packages = {
        LM_FILE: {"best_state": state, "xp.cfg": yaml.safe_dump(lm_xp), "version": "1.3.0", "exported": True},
        CODEC_FILE: {
            "best_state": codec_state_to_audiocraft(EncodecModel(codec).state_dict()),
            "xp.cfg": yaml.safe_dump(codec_xp),
            "version": "1.3.0",
            "exported": True,
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(packages[CODEC_FILE], folder / CODEC_FILE)
    with torch.serialization.skip_data():
        torch.save(packages[LM_FILE], folder / LM_FILE)
    torch.manual_seed(0)
    with torch.serialization.set_default_mmap_options(mmap.MAP_SHARED):
        state = torch.load(folder / LM_FILE, mmap=True, weights_only=True)["best_state"]
    for tensor in state.values():
        if tensor.ndim == 1:
            tensor.uniform_(0.5, 1.0)
        else:
            tensor.normal_(std=tensor.shape[-1] ** -0.5)
    with torch.device("meta"):
        text_encoder = T5EncoderModel(T5Config(d_model=1024, d_kv=64, d_ff=4096, num_layers=24, num_heads=16))
    text_encoder = text_encoder.to_empty(device="cpu")
    text_encoder.tie_weights()
    for parameter in text_encoder.parameters():
        torch.nn.init.uniform_(parameter, -0.01, 0.01)
    shutil.copytree(TEXT_ENCODER, folder / "t5")
    text_encoder.save_pretrained(folder / "t5")
    return folder


def run_python(code: str, *args: str, check: bool = True, env: dict[str, str] | None = None, flags: tuple = ()):
    """Runs `code` in a fresh interpreter, in which `testing_utils` can be imported."""
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    result = subprocess.run(
        [sys.executable, *flags, "-c", code, *map(str, args)],
        env={**os.environ, "PYTHONPATH": path, **(env or {})},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert not check or result.returncode == 0, f"exit code {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result


def json_of(result: subprocess.CompletedProcess):
    """What a process of `run_python` printed as its last line."""
    return json.loads(result.stdout.splitlines()[-1])


class HubServer:
    """A stand-in for the Hub on 127.0.0.1 that serves folders: `{repo: {revision: folder}}`, some behind a token.

    A context manager; `environment` holds what a process needs to use it.
    """

    def __init__(self, repos: dict[str, dict[str, Path]], tokens: dict[str, str] | None = None):
        self.repos = repos
        self.tokens = tokens or {}
        self.requests: list[str] = []

    @property
    def environment(self) -> dict[str, str]:
        return {"HF_ENDPOINT": f"http://127.0.0.1:{self.server.server_port}", "HF_HUB_OFFLINE": "0"}

    def __enter__(self):
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.answer(with_body=False)

            def do_GET(self):
                self.answer(with_body=True)

            def answer(self, with_body: bool):
                hub.requests.append(f"{self.command} {self.path}")
                status, headers, body = hub.respond(unquote(urlsplit(self.path).path), self.headers)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if with_body:
                    self.wfile.write(body)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.server.shutdown()
        self.server.server_close()

    def respond(self, path: str, headers) -> tuple[int, dict[str, str], bytes]:
        def missing(what: str, status: int = 404):
            return status, {"X-Error-Code": what, "X-Error-Message": what}, b"{}"

        api = path.startswith("/api/models/")
        name = path.removeprefix("/api/models" if api else "").strip("/")
        repo = next((repo for repo in self.repos if name == repo or name.startswith(f"{repo}/")), None)
        token = self.tokens.get(repo)
        if repo is None or (token is not None and headers.get("Authorization") != f"Bearer {token}"):
            return missing("RepoNotFound", 401)
        rest = name.removeprefix(repo).strip("/")
        if api:
            if rest:  # a listing of a folder in it
                return missing("EntryNotFound")
            return 200, {"Content-Type": "application/json"}, json.dumps({"id": repo, "siblings": []}).encode()
        _, revision, filename = rest.split("/", 2)
        commit = {hashlib.sha1(f"{repo}{name}".encode()).hexdigest(): name for name in self.repos[repo]}
        revision = commit.get(revision, revision)
        if revision not in self.repos[repo]:
            return missing("RevisionNotFound")
        headers = {"X-Repo-Commit": hashlib.sha1(f"{repo}{revision}".encode()).hexdigest()}
        file = self.repos[repo][revision] / filename
        if not file.is_file():
            status, error, body = missing("EntryNotFound")
            return status, {**headers, **error}, body
        body = file.read_bytes()
        return 200, {**headers, "ETag": f'"{hashlib.sha256(body).hexdigest()}"'}, body
