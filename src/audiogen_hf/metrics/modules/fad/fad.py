"""Fréchet audio distance as an `evaluate` module."""

import datasets
import evaluate
import numpy as np

from audiogen_hf.metrics.backbones import BACKBONES, load_backbone
from audiogen_hf.metrics.frechet import (
    GroupedMoments,
    bootstrap_frechet_interval,
    extrapolate_frechet_distance,
    frechet_distance,
)
from audiogen_hf.metrics.sounds import check_waveform

_DESCRIPTION = """\
Distance between the distributions of two sets of sounds: that of normal distributions fitted to embeddings of their
windows. 0 for equal sets; only figures of one backbone and of similar numbers of clips compare.
"""

_KWARGS_DESCRIPTION = f"""
The configuration names the backbone ({", ".join(BACKBONES)}; default yamnet), or is "embeddings" for rows that are
embeddings already.

Args:
    predictions (list of list of float): Generated sounds, mono, any lengths; or embeddings.
    references (list of list of float): Real sounds or their embeddings. Their number may differ.
    sampling_rate (int): Rate of the sounds in Hz. Not for embeddings.
    allow_resampling (bool): Whether sounds may be resampled to the rate of the backbone, defaults to True.

Returns:
    fad (float): The distance.
    fad_confidence_interval (tuple or None): 95 %, from a bootstrap over clips.
    fad_infinity (float or None): Extrapolation to endless generated clips; None under 8 of them.
    fad_infinity_r_squared (float or None): How well the extrapolated line fits.
"""

_CITATION = """\
@inproceedings{kilgour2019frechet,
  title={Fr{\\'e}chet Audio Distance: A Reference-Free Metric for Evaluating Music Enhancement Algorithms},
  author={Kilgour, Kevin and Zuluaga, Mauricio and Roblek, Dominik and Sharifi, Matthew},
  booktitle={Interspeech},
  year={2019}
}
"""


class FrechetAudioDistance(evaluate.Metric):
    def _info(self):
        row = datasets.Sequence(datasets.Value("float32"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": row, "references": row}),
            reference_urls=["https://arxiv.org/abs/1812.08466"],
        )

    def add_batch(self, *, predictions=None, references=None, **kwargs):
        """Add sounds, or embeddings; their numbers may differ, or one set be missing."""
        # The table has one row for a prediction and a reference. FAD pairs nothing: empty rows fill the shorter set.
        predictions, references = ([] if rows is None else list(rows) for rows in (predictions, references))
        length = max(len(predictions), len(references))
        predictions += [[]] * (length - len(predictions))
        references += [[]] * (length - len(references))
        super().add_batch(predictions=predictions, references=references, **kwargs)

    def _compute(self, predictions, references, sampling_rate=None, allow_resampling=True):
        backbone = None
        if self.config_name != "embeddings":
            backbone = load_backbone("yamnet" if self.config_name == "default" else self.config_name)
        moments = []
        for name, rows in (("predictions", predictions), ("references", references)):
            moments.append(GroupedMoments())
            for index, row in enumerate(rows):
                if len(row) == 0:
                    continue
                if backbone is None:
                    embeddings = np.asarray(row)[None]
                else:
                    samples = check_waveform(row, f"{name}[{index}]", sampling_rate, backbone, allow_resampling)
                    embeddings = backbone.audio_features(samples, backbone.info.sampling_rate).embeddings
                moments[-1].update(embeddings, index)
        generated, reference = moments
        limit = extrapolate_frechet_distance(generated, reference.total())
        return {
            "fad": frechet_distance(generated.total(), reference.total()),
            "fad_confidence_interval": bootstrap_frechet_interval(generated, reference),
            "fad_infinity": None if limit is None else limit.value,
            "fad_infinity_r_squared": None if limit is None else limit.r_squared,
        }
