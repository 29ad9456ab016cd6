"""rayscope's training step, as DictionaryTrainer does it under Lightning,
for one dictionary or several one after another.

D site width, L latents, B vectors of a batch.
"""

import protocol
import torch
from torch import Tensor

from rayscope.dictionaries import AbsTopK, BatchTopK, TopK
from rayscope.dictionaries.sparse import selection
from rayscope.memory import keep_freed_memory
from rayscope.model.sites import Site
from rayscope.streams.stream import Batch
from rayscope.training.trainer import DictionaryTrainer

SITE = Site("blocks.6.hook_resid_pre", 0, 6)
NEVER = 10**9  # tokens


KINDS = {"topk": TopK, "abstopk": AbsTopK, "batchtopk": BatchTopK}


class Alone:
    """A dictionary with an optimizer of its own."""

    def __init__(self, k: int, sample_ND: Tensor):
        self.dictionary = KINDS[settings.kind](
            settings.width, settings.latents, k, seed=settings.seed, lr=settings.lr, auxk=settings.auxk
        )
        self.dictionary.prepare(sample_ND, NEVER)
        self.trainer = DictionaryTrainer(
            {SITE: {"one": self.dictionary}}, steps=settings.total_steps, batch_size=settings.batch
        )
        configured = self.trainer.configure_optimizers()
        self.optimizer, self.scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
        dead = torch.randperm(settings.latents, generator=torch.Generator().manual_seed(1))
        self.dead = dead[: int(settings.dead * settings.latents)]

    def step(self, x_BD: Tensor) -> None:
        self.dictionary.firing.silent_L[self.dead] = NEVER  # those that fire would be dead no longer
        none = torch.empty(0)
        batch = Batch(none, none, none, none, {SITE.key: x_BD})
        self.trainer.training_step(batch, 0).backward()
        self.trainer.on_before_optimizer_step(self.optimizer)
        self.optimizer.step()
        self.trainer.after_step()
        self.optimizer.zero_grad()
        self.scheduler.step()


settings = protocol.start()
keep_freed_memory()  # as the command line does
if settings.exact:
    selection.bfloat16_pays = lambda W_LD: False  # latents are chosen in full precision
train_ND, held_out_ND = protocol.vectors(settings)
alone = [Alone(k, train_ND[:8192]) for k in settings.ks]
for x_BD in protocol.batches(train_ND, settings.batch, settings.seed):
    for one in alone:
        one.step(x_BD)
last = alone[0].dictionary.eval()
facts = {"fvu": protocol.fvu(last, held_out_ND)} if settings.held_out else {}
protocol.finish("rayscope", dead=float(alone[0].dictionary.firing.dead_L.float().mean()), **facts)
