"""rayscope's harvest: ActivationStream.harvest of the same rows at every step.

R rows, C context, D site width.
"""

import protocol
import torch

from rayscope import model as models
from rayscope.benchmarks.planted import random_rows
from rayscope.memory import keep_freed_memory
from rayscope.model.sites import resolve
from rayscope.streams.harvest import ActivationStream

settings = protocol.start()
keep_freed_memory()  # as the command line does
model = models.load(settings.model)
sites = resolve(settings.sites, model)
rows = random_rows(settings.rows, settings.context, settings.vocabulary, settings.seed)
stream = ActivationStream(model, rows, sites, tokens=settings.context, batch_size=1, precision=settings.precision)
numbers = stream.plan(0)[0][: settings.rows]
for _ in protocol.rounds():
    harvested = stream.harvest(numbers)

facts = {"peak_mb": protocol.peak_mb()}
if settings.compare:  # with the fp32 hidden states, in batches of the same shape
    site = sites[-1]
    few = numbers[: stream.harvest_rows]
    tokens_RC = torch.from_numpy(rows.tokens[few]).long()
    with torch.no_grad():
        hidden = model.network.transformer(tokens_RC, output_hidden_states=True).hidden_states
    true_ND = hidden[site.layer][:, 1:].flatten(0, 1)
    x_ND = stream.harvest(few).activations[site.key]
    facts["relative_error"] = float((x_ND - true_ND).norm() / true_ND.norm())
protocol.finish("rayscope", **facts)
