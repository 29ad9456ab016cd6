import copy
from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rayscope.model import LanguageModel
from rayscope.model.sites import all_sites, resolve
from rayscope.seeding import generator_of
from rayscope.streams.harvest import ActivationStream
from rayscope.streams.source import Source
from rayscope.streams.stream import Batch
from rayscope.text import PackedText, Rows

TWO = ["blocks.1.mlp.hook_post", "blocks.2.hook_resid_post"]


def stream_of(model: LanguageModel, rows: Rows, hooks=TWO, **options) -> ActivationStream:
    options = {"tokens": 64 * 14, "batch_size": 64, "round_tokens": 31 * 10, "seed": 3} | options
    return ActivationStream(model, rows, resolve(hooks, model), **options)


def rows_of(tokens_RC: np.ndarray, vocabulary: int) -> Rows:
    """Rows whose documents change every seven tokens."""
    documents_RC = (np.arange(tokens_RC.size) // 7).reshape(tokens_RC.shape).astype(np.int32)
    return Rows(tokens_RC.astype(np.uint16), documents_RC, np.bincount(tokens_RC.ravel(), minlength=vocabulary))


def first_rows(rows: Rows, count: int) -> Rows:
    return Rows(rows.tokens[:count], rows.documents[:count], rows.counts)


def equal(a: Batch, b: Batch, keys=None) -> bool:
    names = ("tokens_N", "previous_N", "documents_N", "positions_N")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names) and all(
        torch.equal(a.activations[key], b.activations[key]) for key in keys or a.activations
    )


@torch.no_grad()
def test_a_batch_holds_what_module_hooks_see(model: LanguageModel, packed: PackedText):
    """Every vector, token, previous token and document at its (row, position); documents number the rows here."""
    rows = packed.train
    numbered = Rows(rows.tokens, np.repeat(np.arange(len(rows), dtype=np.int32)[:, None], 32, axis=1), rows.counts)
    found: list[Tensor] = []
    hooks = [
        model.network.transformer.h[1].mlp.act.register_forward_hook(lambda m, i, out: found.append(out)),
        model.network.transformer.h[2].register_forward_hook(
            lambda m, i, out: found.append(out[0] if isinstance(out, tuple) else out)
        ),
    ]
    every = torch.from_numpy(rows.tokens[:].astype(np.int64))
    for batch in list(stream_of(model, numbered, tokens=64 * 6)):
        found.clear()
        r, p = batch.documents_N, batch.positions_N
        model.network(every[r])  # each vector's own row, by the network's own forward
        n = torch.arange(len(batch))
        post, resid = (x[n, p] for x in found)
        assert torch.equal(batch.tokens_N, every[r, p])
        assert torch.equal(batch.previous_N, every[r, p - 1])
        torch.testing.assert_close(batch.activations["blocks_1_mlp_hook_post"], post, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(batch.activations["blocks_2_hook_resid_post"], resid, rtol=1e-5, atol=1e-5)
    for hook in hooks:
        hook.remove()


def test_documents_are_those_of_the_position(model: LanguageModel):
    tokens_RC = np.arange(20 * 32).reshape(20, 32) % 320
    rows = rows_of(tokens_RC, 320)
    known = {
        (int(t), int(q)): int(d)
        for t, q, d in zip(tokens_RC[:10, 1:].flat, tokens_RC[:10, :-1].flat, rows.documents[:10, 1:].flat, strict=True)
    }
    for batch in stream_of(model, first_rows(rows, 10), tokens=64 * 4):
        for token, previous, document in zip(batch.tokens_N, batch.previous_N, batch.documents_N, strict=True):
            assert known[int(token), int(previous)] == int(document)


def test_position_0_is_in_no_batch_and_all_others_are(model: LanguageModel, packed: PackedText):
    seen = torch.cat([batch.positions_N for batch in stream_of(model, packed.train)])
    assert set(seen.tolist()) == set(range(1, 32))


def test_a_batch_depends_on_seed_and_number_alone(model: LanguageModel, packed: PackedText):
    whole = list(stream_of(model, packed.train))
    other = stream_of(model, packed.train)
    for number in (13, 0, 7, 7, 4, 12):
        assert equal(other[number], whole[number])
    assert not torch.equal(stream_of(model, packed.train, seed=4)[0].tokens_N, whole[0].tokens_N)
    assert len({tuple(batch.tokens_N.tolist()) for batch in whole}) == len(whole)
    longer = stream_of(model, packed.train, tokens=64 * 20)
    assert all(equal(longer[number], batch) for number, batch in enumerate(whole))


def test_other_sites_change_no_bit(model: LanguageModel, packed: PackedText):
    one = list(stream_of(model, packed.train, TWO[:1]))
    every = list(stream_of(model, packed.train, [site.hook for site in all_sites(model)]))
    assert len(every[0].activations) == 18
    assert all(equal(a, b) for a, b in zip(one, every, strict=True))


@pytest.mark.parametrize("stop", [1, 3, 4, 9, 13])  # 4 batches per round: inside rounds and between them
def test_a_resumed_stream_is_the_uninterrupted_one(model: LanguageModel, packed: PackedText, stop: int):
    special = model.tokenizer.all_special_ids
    whole = list(stream_of(model, packed.train, exclude=special))
    first = stream_of(model, packed.train, exclude=special)
    assert first.batches_a_round == 4
    started = iter(first)
    before = [next(started) for _ in range(stop)]
    state = copy.deepcopy(first.state_dict())
    assert state == {"next_batch": stop}
    resumed = stream_of(model, packed.train, exclude=special)
    resumed.load_state_dict(state)
    after = list(resumed)
    assert all(equal(a, b) for a, b in zip([*before, *after], whole, strict=True))
    assert equal(next(iter(resumed)), whole[0])  # after its end it starts again


def test_it_is_sized_and_its_rounds_are_of_tokens_not_of_sites(model: LanguageModel, packed: PackedText):
    stream = stream_of(model, packed.train, tokens=64 * 14 + 63)
    assert len(stream) == 14 == len(list(stream))
    assert len(stream[0]) == 64
    assert stream_of(model, packed.train, [s.hook for s in all_sites(model)]).batches_a_round == stream.batches_a_round


def test_each_pass_visits_every_position_once_in_an_order_of_its_own(model: LanguageModel):
    tokens_RC = np.arange(20)[:, None] * np.ones(32, int)  # a row's tokens are its number
    stream = stream_of(model, rows_of(tokens_RC, 320), tokens=2 * 20 * 31, batch_size=62, round_tokens=31 * 10)
    passes = []
    for start in (0, 10):
        batches = [stream[number] for number in range(start, start + 10)]
        passes.append(torch.cat([b.tokens_N * 32 + b.positions_N for b in batches]))
    every = [row * 32 + position for row in range(20) for position in range(1, 32)]
    assert sorted(passes[0].tolist()) == sorted(passes[1].tolist()) == every
    assert not torch.equal(*passes)


def test_a_held_out_split_is_passed_over_at_most_once(model: LanguageModel, packed: PackedText):
    """Where rounds do not divide the split, a last round must not begin a second pass, whose rows would count twice."""
    tokens_RC = np.repeat(np.arange(25)[:, None], 32, axis=1)
    held_out = PackedText(packed.folder, "", 32, packed.train, rows_of(tokens_RC, 320), packed.test)
    for batch_size, round_tokens, tokens in (
        (40, 310, 10_000),
        (40, 310, 500),
        (300, 310, 10_000),
        (64, 65_536, 10_000),
    ):
        source = Source(model, held_out, 0, batch_size, round_tokens)
        stream = source.stream("validation", resolve(TWO[0], model), tokens)
        found = torch.cat([batch.tokens_N * 32 + batch.positions_N for batch in stream]).tolist()
        assert len(found) == len(set(found))
        assert len(found) > min(tokens, 25 * 31) - 3 * batch_size
    with pytest.raises(ValueError, match=r"split validation has 744 positions, .*: less than one batch of 1024"):
        Source(model, held_out, batch_size=1024).stream("validation", resolve(TWO[0], model), 5000)
    with pytest.raises(ValueError, match="tokens=0 is less than one batch of 64"):
        Source(model, held_out, batch_size=64).stream("validation", resolve(TWO[0], model), 0)


SPECIAL = (7, 9)


@pytest.fixture
def separated() -> Rows:
    """12 rows, row 5 nothing but special tokens, 5 more in the others: 336 positions; documents number the rows."""
    tokens_RC = np.random.default_rng(0).integers(10, 320, (12, 32))
    tokens_RC[5] = 7
    tokens_RC[[0, 3, 3, 8, 11], [4, 12, 13, 31, 1]] = 7, 9, 7, 9, 9
    tokens_RC[4, 0] = 7  # at position 0, which is in no batch anyway
    rows = rows_of(tokens_RC, 320)
    return Rows(rows.tokens, np.repeat(np.arange(12, dtype=np.int32)[:, None], 32, axis=1), rows.counts)


@pytest.mark.parametrize(("batches", "passes"), [(7, 1), (4, 2), (31, 31)])  # a round is 1/2, 2/7, 31/14 of a pass
def test_a_pass_holds_each_position_but_0_and_special_tokens_once(
    model: LanguageModel, separated: Rows, batches: int, passes: int
):
    """Rounds that begin and end inside rows leave nothing out, and every vector is the model's at its own position."""
    hook, every = "blocks.1.hook_resid_post", torch.from_numpy(separated.tokens.astype(np.int64))
    options = {"tokens": 336 * passes, "batch_size": 24, "round_tokens": 24 * batches + 23, "exclude": SPECIAL}
    stream = stream_of(model, separated, [hook], **options)
    hidden = model.network(every, output_hidden_states=True).hidden_states[2]
    found = Counter()
    for batch in stream:
        r, p = batch.documents_N, batch.positions_N
        assert torch.equal(batch.tokens_N, every[r, p])
        assert torch.equal(batch.previous_N, every[r, p - 1])
        torch.testing.assert_close(batch.activations[stream.sites[0].key], hidden[r, p], rtol=1e-5, atol=1e-5)
        found.update(zip(r.tolist(), p.tolist(), strict=True))
    left = {(r, p) for r in range(12) for p in range(1, 32) if separated.tokens[r, p] not in SPECIAL}
    assert len(left) == 336
    assert found == dict.fromkeys(left, passes)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_streams_of_a_source_leave_special_tokens_out(model: LanguageModel, packed: PackedText, split: str):
    rows, (end,) = packed[split], model.tokenizer.all_special_ids
    left = int((rows.tokens[:, 1:] != end).sum())
    assert left < rows.tokens[:, 1:].size
    numbers = np.arange(rows.tokens.size, dtype=np.int32).reshape(rows.tokens.shape)  # in place of documents
    numbered = PackedText(packed.folder, "", 32, *[Rows(rows.tokens, numbers, rows.counts)] * 3)
    stream = Source(model, numbered, 0, 16, 160).stream(split, resolve(TWO[1], model), left)
    batches = list(stream)
    tokens_N, previous_N = (torch.cat([getattr(b, name) for b in batches]) for name in ("tokens_N", "previous_N"))
    assert end not in tokens_N
    assert end in previous_N  # what follows a separator stays
    found = torch.cat([batch.documents_N for batch in batches]).tolist()
    assert left - len(found) < 16 * len(batches) // stream.batches_a_round
    if split == "validation":
        assert len(found) == len(set(found))
    assert torch.equal(stream.token_ids(), tokens_N)


def test_vectors_are_copied_once_into_the_round_and_once_into_their_batch(model: LanguageModel, separated: Rows):
    """No special token costs a copy of the round:
    while it is made and cut, one storage holds as much as a round does.
    """
    options = {"tokens": 336, "batch_size": 24, "round_tokens": 336, "harvest_rows": 1, "exclude": SPECIAL}
    stream = stream_of(model, separated, ["blocks.2.hook_resid_post"], **options)
    large = set()

    class Storages(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and out.untyped_storage().nbytes() >= 336 * 32 * 4:
                large.add(out.untyped_storage().data_ptr())
            return out

    with Storages():
        batches = [stream[number] for number in range(14)]
    assert len(large) == 1
    assert len({batch.activations["blocks_2_hook_resid_post"].data_ptr() for batch in batches}) == 14


def test_bf16_is_close_and_not_equal(model: LanguageModel, packed: PackedText):
    exact, rounded = stream_of(model, packed.train)[0], stream_of(model, packed.train, precision="bf16")[0]
    assert torch.equal(exact.tokens_N, rounded.tokens_N)
    for key, x_ND in exact.activations.items():
        assert rounded.activations[key].dtype == torch.float32
        assert not torch.equal(x_ND, rounded.activations[key])
        assert (x_ND - rounded.activations[key]).norm() < 0.03 * x_ND.norm()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_activations_that_are_not_finite_name_their_site(model: LanguageModel, packed: PackedText, bad: float):
    broken = LanguageModel("broken", copy.deepcopy(model.network), model.tokenizer)
    broken.network.transformer.h[1].mlp.c_fc.bias[3] = bad
    stream = stream_of(broken, packed.train, ["blocks.0.hook_resid_post", *TWO])
    with pytest.raises(
        ValueError, match=r"activations at blocks.1.mlp.hook_post of broken: 279 of 279 vectors hold NaN"
    ):
        stream[0]
    next(iter(stream_of(broken, packed.train, ["blocks.1.hook_resid_mid"])))  # before the fault all is well


def test_sizes_that_cannot_be_are_refused(model: LanguageModel, packed: PackedText):
    with pytest.raises(ValueError, match="round_tokens=62 is less than one batch of 64"):
        stream_of(model, packed.train, round_tokens=62)
    with pytest.raises(
        ValueError, match=r"^tokens=63 is less than one batch of 64; raise it, or lower stream.batch_size"
    ):
        stream_of(model, packed.train, tokens=63)
    with pytest.raises(ValueError, match=r"^features.tokens=63 is less than one batch of 64"):
        Source(model, packed, batch_size=64).stream("test", resolve(TWO[0], model), 63, option="features.tokens")
    with pytest.raises(ValueError, match=r"stream.batch_size=0: at least 1"):
        stream_of(model, packed.train, batch_size=0)
    few = first_rows(packed.train, 3)
    left = int((few.tokens[:, 1:] != few.tokens[0, 1]).sum())
    with pytest.raises(
        ValueError, match=f"text: {left} positions, without position 0 and special .* batch of {left + 1};"
    ):
        stream_of(model, few, batch_size=left + 1, exclude=few.tokens[0, 1:2].tolist())
    stream_of(model, few, batch_size=left, exclude=few.tokens[0, 1:2].tolist())
    with pytest.raises(ValueError, match="precision=fp8: fp32 or bf16"):
        stream_of(model, packed.train, precision="fp8")


@pytest.mark.parametrize("seed", [20261125083000, -(10**30), 2**63, 10**12])
def test_a_seed_is_any_whole_number(seed: int):
    keys = [("pass", seed, 0), ("pass", seed, np.int64(0)), ("pass", seed + 1, 0)]
    drawn, same, other = (torch.randperm(50, generator=generator_of(*key)) for key in keys)
    assert sorted(drawn.tolist()) == list(range(50))
    assert torch.equal(drawn, same)
    assert not torch.equal(drawn, other)


def test_seeds_give_what_they_gave():
    assert torch.randperm(6, generator=generator_of("pass", 0, 0)).tolist() == [0, 3, 4, 5, 2, 1]
    assert torch.randperm(6, generator=generator_of("round", -3, 2)).tolist() == [4, 3, 1, 0, 5, 2]


def test_labels_are_those_of_the_batch_and_need_no_model(model: LanguageModel, packed: PackedText):
    stream, blind = stream_of(model, packed.train), stream_of(model, packed.train)
    blind.model = None  # type: ignore[assignment]
    for number in (0, 13, 5):
        labels = blind.labels(number)
        assert labels.activations == {}
        assert all(torch.equal(a, b) for a, b in zip(labels.labels, stream[number].labels, strict=True))


def test_join_is_the_batches_in_order(model: LanguageModel, packed: PackedText):
    batches = list(stream_of(model, packed.train, tokens=64 * 3))
    whole = Batch.join(batches)
    assert len(whole) == 64 * 3
    assert all(equal(whole.take(torch.arange(64 * i, 64 * (i + 1))), batch) for i, batch in enumerate(batches))
    with pytest.raises(ValueError, match="batches: none was given"):
        Batch.join([])


def test_generators_of_two_keys_have_nothing_in_common():
    keys = [("a", 1, 2), ("a", 12), ("a", 1, 3), ("b", 1, 2), ("a", "1", 2)]
    drawn = torch.stack([torch.randn(4000, generator=generator_of(*key)) for key in keys])
    assert torch.equal(drawn[0], torch.randn(4000, generator=generator_of("a", 1, 2)))
    assert (torch.corrcoef(drawn) - torch.eye(len(keys))).abs().max() < 0.08  # five standard errors
