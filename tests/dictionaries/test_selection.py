"""Which latents are chosen, against topk of the dense matrix, with and without select.c. N vectors, L latents."""

import subprocess
import sys

import pytest
import torch

from helpers import randn64
from rayscope.dictionaries.sparse import native, selection
from rayscope.dictionaries.sparse.selection import above, choose_by_batch, choose_by_vector, largest, largest_in_rows


@pytest.fixture(params=["select.c", "pytorch"])
def scan(request, monkeypatch):
    """Both ways of scanning products."""
    if request.param == "pytorch":
        monkeypatch.setattr(native, "library", lambda: None)
    elif native.library() is None:
        pytest.skip("no C compiler here")


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_choice_by_vector_is_topk_of_the_dense_matrix(signed, dtype, scan, monkeypatch):
    monkeypatch.setattr(selection, "CHUNK", 8 * 30)  # 21 vectors: two whole chunks and a part
    x_ND, W_LD, b_L = randn64(21, 6, dtype=dtype), randn64(30, 6, seed=1, dtype=dtype), randn64(30, seed=2, dtype=dtype)
    pattern = choose_by_vector(x_ND, W_LD, b_L, 4, signed)
    pre_NL = x_ND @ W_LD.T + b_L
    size_NL = pre_NL.abs() if signed else pre_NL
    assert pattern.indices_M.view(21, 4).sort().values.equal(size_NL.topk(4).indices.sort().values)


@pytest.mark.parametrize("hint", [0.0, 0.5, 100.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_choice_by_batch_is_topk_of_the_flattened_matrix(hint, dtype, scan, monkeypatch):
    monkeypatch.setattr(selection, "CHUNK", 8 * 30)
    x_ND, W_LD, b_L = randn64(21, 6, dtype=dtype), randn64(30, 6, seed=1, dtype=dtype), randn64(30, seed=2, dtype=dtype)
    pattern = choose_by_batch(x_ND, W_LD, b_L, 21 * 3, hint)
    pre_NL = x_ND @ W_LD.T + b_L
    expected = pre_NL.flatten().topk(63).indices.sort().values
    assert (pattern.rows_M * 30 + pattern.indices_M).equal(expected)
    places, values = largest(x_ND, W_LD, b_L, 10**6, hint)
    assert len(places) == (pre_NL > 0).sum()
    torch.testing.assert_close(values, pre_NL.flatten()[places])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(
    ("columns", "k"),  # blocks of 64, of 32 with a part, of 1; a histogram and none; all columns; the greatest alone
    [(4096, 8), (1013, 9), (2500, 512), (130, 100), (5, 5), (777, 1)],
)
def test_the_largest_of_each_row_are_topk_s(columns, k, signed, dtype, scan):
    products_CL, b_L = randn64(50, columns).to(dtype), randn64(columns, seed=1).float()
    products_CL[3] = 0  # one value everywhere
    b_L[: columns // 2] = 0
    products_CL[4] *= 1e30
    pre_CL = products_CL + b_L
    pre_CL = pre_CL.abs() if signed else pre_CL
    found = largest_in_rows(products_CL, b_L, k, signed)
    assert found.sort().values.diff().ne(0).all(), "a column twice"
    assert pre_CL.gather(1, found).sort().values.equal(pre_CL.topk(k).values.sort().values)


def test_rows_that_are_not_finite_give_k_different_columns(scan):
    products_CL = torch.tensor([[torch.nan] * 70, [torch.inf] * 70, [-torch.inf] * 70, [1.0, torch.nan] * 35])
    found = largest_in_rows(products_CL, torch.zeros(70), 6, False)
    assert found.sort().values.diff().ne(0).all()
    assert ((found >= 0) & (found < 70)).all()
    assert (found[3] % 2 == 0).all()  # NaN is chosen last


def test_of_equal_scores_the_lower_columns_are_chosen():
    if native.library() is None:
        pytest.skip("no C compiler here")
    products_CL = (randn64(40, 1500).float() * 2).round()
    found = largest_in_rows(products_CL, torch.zeros(1500), 20, False)
    expected = products_CL.sort(descending=True, stable=True).indices[:, :20]
    assert found.sort().values.equal(expected.sort().values)


@pytest.mark.parametrize("of_batch", [False, True])
def test_no_vectors_at_all(of_batch, scan):
    x_ND, W_LD, b_L = torch.zeros(0, 6), torch.ones(30, 6), torch.zeros(30)
    pattern = choose_by_batch(x_ND, W_LD, b_L, 0, 0.0) if of_batch else choose_by_vector(x_ND, W_LD, b_L, 4, False)
    assert len(pattern) == 0
    assert pattern.offsets.equal(torch.zeros(1, dtype=torch.int64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("columns", [64, 200, 33])
def test_all_above_a_floor(columns, dtype, scan):
    products_CL, b_L = randn64(20, columns).to(dtype), randn64(columns, seed=1).float()
    pre_CL = products_CL + b_L
    floor = pre_CL[7, 5].item()  # itself is not above
    counts_C, places, values = above(products_CL, b_L, floor)
    assert counts_C.equal((pre_CL > floor).sum(1))
    assert places.equal((pre_CL > floor).flatten().nonzero()[:, 0])
    assert values.equal(pre_CL[pre_CL > floor])


def test_threads_change_nothing():
    if native.library() is None:
        pytest.skip("no C compiler here")
    products_CL, b_L, before = randn64(101, 700).float(), randn64(700, seed=1).float(), torch.get_num_threads()
    try:
        found = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append((largest_in_rows(products_CL, b_L, 7, False), *above(products_CL, b_L, 1.5)))
    finally:
        torch.set_num_threads(before)
    assert all(a.equal(b) for a, b in zip(*found, strict=True))


def test_choice_in_bfloat16_is_nearly_the_exact_one(monkeypatch):
    x_ND, W_LD, b_L = (
        randn64(*s, seed=i, dtype=torch.float32) for i, s in enumerate([(600, 256), (2048, 256), (2048,)])
    )
    chosen = []
    for pays in (True, False):  # right on every CPU, if slow on most
        monkeypatch.setattr(selection, "bfloat16_pays", lambda W_LD, pays=pays: pays)
        chosen.append(choose_by_vector(x_ND, W_LD, b_L, 8, signed=False))
    fast, exact = chosen
    pre_NL = x_ND @ W_LD.T + b_L
    assert exact.indices_M.view(-1, 8).sort().values.equal(pre_NL.topk(8).indices.sort().values)
    fast_sum, exact_sum = (pre_NL.gather(1, pattern.indices_M.view(-1, 8)).sum() for pattern in (fast, exact))
    assert fast_sum > 0.999 * exact_sum


@pytest.mark.slow
def test_a_broken_library_in_the_cache_is_built_anew(tmp_path, monkeypatch):
    if native.library() is None:
        pytest.skip("no C compiler here")
    monkeypatch.setenv("RAYSCOPE_CACHE", str(tmp_path))
    path = tmp_path / "native" / native.name_of(["cc"])
    path.parent.mkdir(parents=True)
    path.write_bytes(b"cut short")
    native.library.cache_clear()
    assert native.library() is not None
    assert path.stat().st_size > 1000
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{"RAYSCOPE_NATIVE": "0"}, {"CC": "no-such-compiler"}, {"CC": "false"}])
def test_without_a_compiler_pytorch_does_it(environment, tmp_path):
    code = (
        "import torch; from rayscope.dictionaries import TopK; from rayscope.dictionaries.sparse import native; "
        "d = TopK(width=8, latents=64, k=2); d(torch.ones(3, 8)); assert native.library() is None"
    )
    environment = {"PATH": "/usr/bin:/bin", "RAYSCOPE_CACHE": str(tmp_path), **environment}  # and no HOME
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob("*.so"))
