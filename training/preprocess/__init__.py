"""Encoded images to what a model sees: decode, crop and resize, augment, normalise, as a line of operations says it.

    ops = Ops.parse("decode|random_resized_crop(224, 0.9)|flip|normalize(clip)")
    ops(data, np.random.default_rng(0))                     # (3, 224, 224) float32

ops.py reads the line and runs it: decode.py → framing.py → colour.py, randaugment.py → normalize.py
"""

from training.preprocess.decode import UnreadableImage
from training.preprocess.ops import OPS, Ops, set_up_worker

__all__ = ["OPS", "Ops", "UnreadableImage", "set_up_worker"]
