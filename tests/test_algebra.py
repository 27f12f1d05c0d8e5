"Laws of the t-product, of the pseudoinverse, of the streamed sums, and of the adapter's maps."
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from fuse_nb.pseudoinverse import tlstsq, tpinv
from fuse_nb.gram import GramAccumulator
from fuse_nb.tproduct import bcirc, fold, teye, tinv, tnorm, tprod, ttranspose, unfold

small = st.integers(1, 5)
tubes = st.integers(1, 16)
dtypes = st.sampled_from([torch.float32, torch.float64, torch.complex64, torch.complex128])
seeds = st.integers(0, 2**31)
quick = settings(max_examples=60, deadline=None)


def rand(*shape, dtype=torch.float64, seed=0): return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))
def close(a, b, scale=1.0):
    eps = torch.finfo(a.dtype).eps
    assert_close(a, b, rtol=1e3*eps, atol=1e3*eps*max(1.0, scale))


@quick
@given(small, small, small, tubes, dtypes, seeds)
def test_fft_equals_the_definition(m, p, q, l, dtype, seed):
    A, B = rand(m, p, l, dtype=dtype, seed=seed), rand(p, q, l, dtype=dtype, seed=seed + 1)
    close(tprod(A, B), fold(bcirc(A) @ unfold(B), l), l*p)


@quick
@given(small, small, small, small, tubes, dtypes, seeds)
def test_laws(m, p, q, r, l, dtype, seed):
    A, B, C = (rand(*s, l, dtype=dtype, seed=seed + k) for k, s in enumerate(((m, p), (p, q), (q, r))))
    close(tprod(tprod(A, B), C), tprod(A, tprod(B, C)), l*l*p*q)
    close(ttranspose(tprod(A, B)), tprod(ttranspose(B), ttranspose(A)), l*p)
    close(tprod(teye(m, l, dtype=dtype), A), A, 4)
    close(ttranspose(ttranspose(A)), A)
    D = rand(p, q, l, dtype=dtype, seed=seed + 9)
    close(tprod(A, B + D), tprod(A, B) + tprod(A, D), l*p)


@quick
@given(small, small, tubes, seeds)
def test_transpose_is_the_adjoint_by_autograd(m, p, l, seed):
    x, T, g = rand(1, m, l, seed=seed).requires_grad_(), rand(m, p, l, seed=seed + 1), rand(1, p, l, seed=seed + 2)
    tprod(x, T).backward(g)
    close(x.grad, tprod(g, ttranspose(T)), l*p)


def test_gradcheck_and_shapes():
    A, B = rand(2, 3, 4, seed=1).requires_grad_(), rand(3, 2, 4, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(tprod, (A, B))
    assert tprod(torch.zeros(0, 3, 4), torch.zeros(3, 2, 4)).shape == (0, 2, 4)
    many = rand(7, 2, 3, 5)
    close(tprod(many, rand(3, 2, 5))[4], tprod(many[4], rand(3, 2, 5)), 15)
    with pytest.raises(ValueError): tprod(torch.zeros(2, 3, 4), torch.zeros(4, 2, 4))
    with pytest.raises(ValueError): tprod(torch.zeros(2, 3, 4), torch.zeros(3, 2, 5))


@quick
@given(small, small, tubes, st.integers(0, 4), st.sampled_from([torch.float64, torch.complex128]), seeds)
def test_penrose(m, p, l, rank, dtype, seed):
    A = tprod(rand(m, rank, l, dtype=dtype, seed=seed), rand(rank, p, l, dtype=dtype, seed=seed + 1)) if rank else torch.zeros(m, p, l, dtype=dtype)
    P = tpinv(A, rcond=1e-10)
    near = lambda a, b: assert_close(a, b, rtol=1e-5, atol=1e-5*max(1.0, b.abs().max().item()))
    near(tprod(tprod(A, P), A), A); near(tprod(tprod(P, A), P), P)
    near(ttranspose(tprod(A, P)), tprod(A, P)); near(ttranspose(tprod(P, A)), tprod(P, A))
    near(bcirc(P), torch.linalg.pinv(bcirc(A), rcond=1e-10))


def test_inverse_and_norm():
    A = rand(4, 4, 6) + 5*teye(4, 6, dtype=torch.float64)
    close(tprod(A, tinv(A)), teye(4, 6, dtype=torch.float64), 10)
    close(tnorm(A), A.norm())


def test_streamed_sums_equal_the_batch_and_merge():
    A, B = rand(200, 7, 3), rand(200, 5, 3, seed=1)
    whole, a, b = (GramAccumulator(7, 5, 3) for _ in range(3))
    whole.update(A, B)
    for i in range(0, 90, 30): a.update(A[i:i + 30], B[i:i + 30])
    b.update(A[90:], B[90:])
    merged = a.merge(b)
    merged = a if merged is None else merged
    assert_close(merged.solve(0.0), tlstsq(A, B), rtol=1e-6, atol=1e-8)
    assert_close(merged.solve(0.3), whole.solve(0.3), rtol=1e-8, atol=1e-10)
    err = (B - tprod(A, whole.solve(0.0))).square().sum()/B.square().sum()
    assert whole.r2(whole.solve(0.0)) <= 1 and err < 1


def test_an_exact_world_is_recovered():
    X, T = rand(300, 12, 4), rand(12, 6, 4, seed=3)
    acc = GramAccumulator(12, 6, 4)
    acc.update(X, tprod(X, T))
    assert_close(acc.solve(0.0).double(), T, rtol=1e-4, atol=1e-4)


def test_adapter_pullback_is_the_adjoint_of_push(tmp_path):
    from test_caption import _tiny
    from fuse_nb.fitting import FuseAdapter
    lm, encoder = _tiny(tmp_path)
    words = [a + b for a in "abcdefghij" for b in "klmnopqrst"] + [a + b + c for a in "abcde" for b in "klmno" for c in "fghij"]
    adapter = FuseAdapter.fit(lm, encoder, words=words)
    assert adapter.tensors
    for l, T in adapter.tensors.items():
        x, g = torch.randn(5, l, T.shape[0], requires_grad=True), torch.randn(5, l, T.shape[1])
        adapter.push(x).backward(g)
        assert_close(adapter.pullback(g), x.grad, rtol=1e-5, atol=1e-5)
        naive = tprod(g.transpose(1, 2)[:, None], ttranspose(T.float()))[:, 0].transpose(1, 2)
        assert_close(adapter.pullback(g), naive, rtol=1e-5, atol=1e-5)
    again = FuseAdapter.from_pretrained(adapter.save_pretrained(tmp_path/"adapter"))
    assert all(torch.equal(again.tensors[l], T) for l, T in adapter.tensors.items())
    with pytest.raises(ValueError, match="does not fit"): again.check(encoder, encoder)

# ---- sums: saved, damaged, shared

def some_sums(seed=0, d=7, e=3, l=4, **options): return GramAccumulator(d, e, l, **options).update(rand(60, d, l, seed=seed), rand(60, e, l, seed=seed + 1), weights=torch.arange(60.)/60)


@pytest.mark.parametrize("options", [{}, dict(dtype=torch.float32), dict(products=torch.float64)])
def test_saved_sums_go_on_as_if_they_had_never_left(tmp_path, options):
    acc = some_sums(**options)
    again = GramAccumulator.load(acc.save(tmp_path/"sums.safetensors"))
    assert (again.dtype, again.products, again.eps, again.words) == (acc.dtype, acc.products, acc.eps, acc.words)
    for a in (acc, again): a.update(rand(9, 7, 4, seed=5), rand(9, 3, 4, seed=6))
    assert all(torch.equal(again.sums[k], v) for k, v in acc.sums.items()) and torch.equal(again.solve(0.1), acc.solve(0.1))
    assert [p.name for p in tmp_path.iterdir()] == ["sums.safetensors"]


def test_damaged_or_foreign_sums_are_refused(tmp_path):
    good = some_sums().save(tmp_path/"good.safetensors").read_bytes()
    bad = tmp_path/"bad.safetensors"
    for cut in (0, 7, len(good)//2, len(good) - 1):
        bad.write_bytes(good[:cut])
        with pytest.raises(ValueError, match="not a whole safetensors file"): GramAccumulator.load(bad)
    save_file({"gram": torch.zeros(2)}, bad)
    with pytest.raises(ValueError, match="expected 'fuse_nb.GramAccumulator/1'"): GramAccumulator.load(bad)
    tensors = load_file(tmp_path/"good.safetensors") | dict(gram=torch.zeros(4, 8, 8, dtype=torch.float64))
    save_file(tensors, bad, metadata=dict(format="fuse_nb.GramAccumulator/1", eps="1e-16", products=""))
    with pytest.raises(ValueError, match="do not fit together"): GramAccumulator.load(bad)
    with pytest.raises(FileNotFoundError, match="nowhere"): GramAccumulator.load(tmp_path/"nowhere")


def test_a_write_that_fails_leaves_the_old_sums(tmp_path, monkeypatch):
    path = some_sums().save(tmp_path/"sums.safetensors")
    before = path.read_bytes()
    def full(tensors, part, metadata):
        part.write_bytes(b"half")
        raise OSError(28, "No space left on device")
    monkeypatch.setattr("fuse_nb.gram.save_file", full)
    with pytest.raises(OSError, match="No space"): some_sums(seed=9).save(path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_sums_of_other_dimensions_do_not_merge():
    with pytest.raises(ValueError, match="d_target = 2, expected 3"): some_sums().merge(some_sums(e=2))


REDUCE = """
import sys, torch, torch.distributed as dist
from fuse_nb.gram import GramAccumulator
rank, folder, e = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
dist.init_process_group("gloo", init_method=f"file://{folder}/meet{e}", rank=rank, world_size=2)
g = torch.Generator().manual_seed(rank)
acc = GramAccumulator(7, 3 if rank else e, 4, products=torch.float64 if rank else None)
X, Y = torch.randn(50, 7, 4, generator=g), torch.randn(50, acc.d_target, 4, generator=g)
acc.update(X, Y)
try: acc.reduce().save(f"{folder}/{rank}.safetensors")
except ValueError as error: print(error)
dist.destroy_process_group()
"""


def test_two_processes_hold_the_sums_of_both_or_refuse_both(tmp_path):
    def run(e):
        jobs = [subprocess.Popen([sys.executable, "-c", REDUCE, str(r), str(tmp_path), str(e)], stdout=subprocess.PIPE, text=True) for r in (0, 1)]
        said = [job.communicate(timeout=120)[0] for job in jobs]
        assert [job.returncode for job in jobs] == [0, 0]
        return said
    run(3)
    both, one = (GramAccumulator.load(tmp_path/f"{r}.safetensors") for r in (0, 1))
    def words(rank):
        g = torch.Generator().manual_seed(rank)
        return torch.randn(50, 7, 4, generator=g), torch.randn(50, 3, 4, generator=g)
    alone = GramAccumulator(7, 3, 4)
    for rank in (0, 1): alone.update(*words(rank))
    assert both.words == one.words == 100 and both.eps == one.eps >= alone.eps
    for k, v in alone.sums.items(): assert_close(both.sums[k], v, rtol=1e-5, atol=1e-3); assert torch.equal(both.sums[k], one.sums[k])
    assert all("processes differ" in said for said in run(2))


def test_only_square_tensors_have_an_inverse():
    for shape in ((2, 3, 4), (3, 2, 4), (5, 2, 3, 4)):
        with pytest.raises(ValueError, match="A must be square"): tinv(torch.ones(shape))


@pytest.mark.parametrize("l", [1, 2, 3, 4, 5, 6])
def test_the_matrices_of_all_frequencies_are_counted_once(l):
    "The counts add up to l, and the traces to l times the sum of squares (Parseval)."
    from fuse_nb.gram import matrices_of
    X = torch.randn(7, 3, l, generator=torch.Generator().manual_seed(l))
    acc = GramAccumulator(3, 2, l)
    acc.update(X, torch.zeros(7, 2, l))
    grams, _, counts = matrices_of(acc, False)
    assert len(counts) == len(grams) == l//2 + 1 and sum(counts) == l
    traces = sum(n*g.diagonal().real.sum().item() for n, g in zip(counts, grams))
    assert traces == pytest.approx(l*X.double().square().sum().item(), rel=1e-4)


@pytest.mark.parametrize("m, p", [(5, 3), (3, 5)])
def test_a_ridge_is_the_normal_equations_of_the_block_circulant_matrix(m, p):
    g = torch.Generator().manual_seed(m)
    A, B = (torch.randn(m, n, 4, dtype=torch.float64, generator=g) for n in (p, 2))
    M, ridge = bcirc(A), 0.7
    wanted = torch.linalg.solve(M.T @ M + ridge*torch.eye(4*p, dtype=torch.float64), M.T @ unfold(B))
    torch.testing.assert_close(tlstsq(A, B, ridge=ridge), fold(wanted, 4), atol=1e-10, rtol=1e-10)


def test_condition_and_squares_of_the_sums_are_those_of_the_rows():
    g = torch.Generator().manual_seed(0)
    X, Y = (torch.randn(40, d, 3, dtype=torch.float64, generator=g) + 1 for d in (4, 2))
    acc = GramAccumulator(4, 2, 3)
    acc.update(X, Y)
    assert float(acc.sums["yy"]) == pytest.approx(Y.square().sum().item(), rel=1e-9)
    values = torch.linalg.eigvalsh(torch.stack([x.mH @ x for x in torch.fft.fft(X, dim=-1).permute(2, 0, 1)]))
    assert acc.condition() == pytest.approx((values.max()/values.min()).item(), rel=1e-6)
