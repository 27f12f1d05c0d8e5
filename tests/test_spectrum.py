"The real DFT: exact where it can be."
import math

import pytest
import torch

from fuse_nb.gram import GramAccumulator, matrices_of
from fuse_nb.spectrum import frequencies, real_dft


@pytest.mark.parametrize("l", range(1, 13))
def test_quarter_turns_are_exact(l):
    "cos(pi/2) is 6e-17 in floating point; a matrix of the DFT need not say so."
    for r, row in enumerate(real_dft(l).tolist()):
        for j, value in enumerate(row):
            quarters = (r + 1)//2*j*4/l + (r > 0 and r % 2 == 0)            # of a full turn
            if quarters == int(quarters): assert value == (1.0, 0.0, -1.0, 0.0)[int(quarters) % 4]
            else: assert value == pytest.approx(math.cos(math.pi/2*quarters), abs=1e-14)


@pytest.mark.parametrize("l", (3, 4, 5, 8))
def test_words_of_one_token_have_real_frequencies(l):
    "A tube with one token has the same spectrum at every frequency; an imaginary part of rounding errors makes an eigendecomposition in single precision 20 times slower."
    X = torch.zeros(64, 6, l); X[..., 0] = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    for f in frequencies(X):
        if f.is_complex(): assert (f.imag == 0).all()
        assert torch.equal(f.real if f.is_complex() else f, X[..., 0])
    grams, _, _ = matrices_of(GramAccumulator(6, 6, l).update(X, X), False)
    for G in grams:
        if G.is_complex(): assert (G.imag == 0).all()
