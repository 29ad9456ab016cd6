"""Held-out vectors through a trained dictionary's interface: encoded alone, or with the metrics of the evaluation.

R rows, C context, N vectors of a batch.
"""

import protocol
import torch

from rayscope.dictionaries import TopK
from rayscope.evaluation.calibration import Calibration
from rayscope.evaluation.codecs import DictionaryCodec
from rayscope.evaluation.meter import Meter, Variance
from rayscope.memory import keep_freed_memory
from rayscope.streams.positions import first
from rayscope.streams.stream import Vectors

settings = protocol.start()
keep_freed_memory()  # as the command line does
train_ND, _ = protocol.vectors(settings)
dictionary = TopK(settings.width, settings.latents, settings.k, seed=settings.seed)
dictionary.prepare(train_ND[:8192], 10**9)
dictionary.eval()
rows = settings.batch // settings.context
documents_RC = torch.arange(rows)[:, None].expand(rows, settings.context).contiguous()
documents_N, first_N = documents_RC.flatten(), first(documents_RC).flatten()
tokens_N = torch.zeros_like(documents_N)  # TopK does not ask
seen = Calibration(dictionary.latents)
seen.update(dictionary.encode_sparse(train_ND[: rows * settings.context]), first_N)
variance = Variance(settings.width, rows)
meter = Meter(DictionaryCodec(dictionary, seen), variance)
for x_ND in protocol.batches(train_ND, rows * settings.context, settings.seed):
    if settings.measure:
        vectors = Vectors(x_ND, x_ND, tokens_N, documents_N, first_N)
        variance.update(vectors)
        meter.update(vectors)
    else:
        dictionary.encode_sparse(x_ND)
protocol.finish("rayscope")
