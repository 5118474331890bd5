"""KL divergence of audio tags as an `evaluate` module."""

import datasets
import evaluate
import numpy as np

from audiogen_hf.metrics.backbones import backbones_with, load_backbone
from audiogen_hf.metrics.bootstrap import bootstrap_mean_interval
from audiogen_hf.metrics.divergence import kl_divergence
from audiogen_hf.metrics.sounds import check_waveform

_DESCRIPTION = """\
KL divergence, in nats, from the tags that a classifier gives a real sound to those it gives the sound generated from
the same text: KL(reference || prediction), mean over pairs.
"""

_KWARGS_DESCRIPTION = f"""
The configuration names the backbone ({", ".join(backbones_with("has_classes"))}; default yamnet), or is
"probabilities" for rows that are distributions over classes already.

Args:
    predictions (list of list of float): Generated sounds, mono, any lengths; or distributions.
    references (list of list of float): The real sound of each, or its distribution.
    sampling_rate (int): Rate of the sounds in Hz. Not for distributions.
    allow_resampling (bool): Whether sounds may be resampled to the rate of the backbone, defaults to True.

Returns:
    kld (float): Mean over pairs.
    kld_confidence_interval (tuple or None): 95 %, from a bootstrap over pairs.
"""

_CITATION = """\
@inproceedings{kreuk2023audiogen,
  title={AudioGen: Textually Guided Audio Generation},
  author={Kreuk, Felix and Synnaeve, Gabriel and Polyak, Adam and Singer, Uriel and D{\\'e}fossez, Alexandre and
          Copet, Jade and Parikh, Devi and Taigman, Yaniv and Adi, Yossi},
  booktitle={ICLR},
  year={2023}
}
"""


class TagDivergence(evaluate.Metric):
    def _info(self):
        row = datasets.Sequence(datasets.Value("float32"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": row, "references": row}),
            reference_urls=["https://arxiv.org/abs/2209.15352"],
        )

    def _compute(self, predictions, references, sampling_rate=None, allow_resampling=True):
        if self.config_name != "probabilities":
            name = "yamnet" if self.config_name == "default" else self.config_name
            if name not in backbones_with("has_classes"):
                raise ValueError(f"{name} has no classes; use {', '.join(backbones_with('has_classes'))}")
            backbone = load_backbone(name)

            def tag(rows, name):
                samples = (
                    check_waveform(row, f"{name}[{index}]", sampling_rate, backbone, allow_resampling)
                    for index, row in enumerate(rows)
                )
                rate = backbone.info.sampling_rate
                return np.stack([backbone.audio_features(each, rate).probabilities for each in samples])

            predictions, references = tag(predictions, "predictions"), tag(references, "references")
        values = kl_divergence(np.stack(list(references)), np.stack(list(predictions)))
        return {"kld": float(values.mean()), "kld_confidence_interval": bootstrap_mean_interval(values)}
