"""Text-audio consistency as an `evaluate` module."""

import datasets
import evaluate
import numpy as np

from audiogen_hf.metrics.backbones import backbones_with, load_backbone
from audiogen_hf.metrics.bootstrap import bootstrap_mean_interval
from audiogen_hf.metrics.consistency import text_consistency
from audiogen_hf.metrics.sounds import check_waveform

_DESCRIPTION = """\
Cosine between the embeddings of a text and of the sound made from it, in a space where both live (CLAP), mean over
pairs.
"""

_KWARGS_DESCRIPTION = f"""
The configuration names the backbone ({", ".join(backbones_with("has_text"))}; default clap), or is "embeddings" for
rows that are embeddings already.

Args:
    predictions (list of list of float): Generated sounds, mono, any lengths; or their embeddings.
    references (list of str): The text of each; or its embedding.
    sampling_rate (int): Rate of the sounds in Hz. Not for embeddings.
    checkpoint (str): Weights in place of the backbone's default. Not for embeddings.
    allow_resampling (bool): Whether sounds may be resampled to the rate of the backbone, defaults to True.

Returns:
    text_consistency (float): Mean over pairs, in [-1, 1].
    text_consistency_confidence_interval (tuple or None): 95 %, from a bootstrap over pairs.
"""

_CITATION = """\
@inproceedings{wu2023clap,
  title={Large-scale Contrastive Language-Audio Pretraining with Feature Fusion and Keyword-to-Caption Augmentation},
  author={Wu, Yusong and Chen, Ke and Zhang, Tianyu and Hui, Yuchen and Berg-Kirkpatrick, Taylor and Dubnov, Shlomo},
  booktitle={ICASSP},
  year={2023}
}
"""


class TextConsistency(evaluate.Metric):
    def _info(self):
        row = datasets.Sequence(datasets.Value("float32"))
        reference = row if self.config_name == "embeddings" else datasets.Value("string")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": row, "references": reference}),
            reference_urls=["https://arxiv.org/abs/2211.06687"],
        )

    def _compute(self, predictions, references, sampling_rate=None, checkpoint=None, allow_resampling=True):
        if self.config_name != "embeddings":
            backbone = load_backbone("clap" if self.config_name == "default" else self.config_name, checkpoint)
            texts = backbone.text_features([str(text) for text in references])
            rate = backbone.info.sampling_rate
            samples = (
                check_waveform(row, f"predictions[{index}]", sampling_rate, backbone, allow_resampling)
                for index, row in enumerate(predictions)
            )
            predictions = [backbone.audio_features(each, rate).embeddings.mean(axis=0) for each in samples]
            references = texts
        values = text_consistency(np.stack(list(references)), np.stack(list(predictions)))
        return {
            "text_consistency": float(values.mean()),
            "text_consistency_confidence_interval": bootstrap_mean_interval(values),
        }
