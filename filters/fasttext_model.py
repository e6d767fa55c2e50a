"""fastText's model files: is one whole? The library reads a file that was cut short as if it went on, and crashes.

Source of the layout: fastText 0.9.2, `saveModel` and `save` of FastText, Args, Dictionary, DenseMatrix, QuantMatrix and
ProductQuantizer (MIT licence). All numbers are little-endian.
"""

from __future__ import annotations

import struct
import tempfile
from typing import Any

from infra.errors import UsageError

MAGIC, VERSION = 793712314, 12
ARGS = "12id"  # dim, ws, epoch, minCount, neg, wordNgrams, loss, model, …
SUPERVISED = 3  # of ARGS' model
CENTROIDS = 256  # of a product quantizer, for each of its dimensions


def load_model(data: bytes, path: str) -> Any:
    """A fastText classifier from its bytes. Raises UsageError, with `path`, where they are not a whole one."""
    import fasttext

    mend = "give fastText's lid.176.bin or lid.176.ftz, and fetch it again if it was"
    try:
        expected, is_classifier = _layout(data)
    except (struct.error, ValueError):
        expected, is_classifier = -1, False
    if expected != len(data):
        raise UsageError(f"{path}: not a whole fastText model; {mend}")
    if not is_classifier:
        raise UsageError(f"{path}: a fastText model of words, which knows no languages; {mend}")
    with tempfile.NamedTemporaryFile(prefix="pairmill-model-") as file:
        file.write(data)
        file.flush()
        try:
            return fasttext.load_model(file.name)
        except (ValueError, RuntimeError, MemoryError) as error:
            raise UsageError(f"{path}: fastText cannot load it: {error}; {mend}") from None


def _layout(data: bytes) -> tuple[int, bool]:
    """(bytes that the model ought to have, is it a classifier), by what it states. Raises struct.error, ValueError."""
    at = 0

    def read(kinds: str) -> tuple[Any, ...]:
        nonlocal at
        values = struct.unpack_from(f"<{kinds}", data, at)
        at += struct.calcsize(f"<{kinds}")
        return values

    def pass_quantizer() -> None:
        nonlocal at
        (dim, _, _, _) = read("4i")
        at += 4 * dim * CENTROIDS

    def pass_matrix(is_quantized: bool) -> None:
        nonlocal at
        if not is_quantized:
            rows, columns = read("2q")
            at += 4 * rows * columns
            return
        has_norms, rows, _, num_codes = read("?2qi")
        at += num_codes
        pass_quantizer()
        if has_norms:
            at += rows
            pass_quantizer()

    if read("2i") != (MAGIC, VERSION):
        raise ValueError("another kind of file")
    kind = read(ARGS)[7]
    num_entries, _, num_labels, _, num_pruned = read("3i2q")
    for _ in range(num_entries):
        at = data.index(b"\0", at) + 1 + struct.calcsize("<qb")  # a word, its count, whether it is a label
    at += 8 * max(0, num_pruned)
    (is_quantized,) = read("?")
    pass_matrix(is_quantized)
    (is_output_quantized,) = read("?")
    pass_matrix(is_quantized and is_output_quantized)
    return at, kind == SUPERVISED and num_labels > 0
