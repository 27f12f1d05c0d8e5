"Wrong answers to the exercises of lesson 40, two each: their checks must refuse them."
WRONG = {
    "40.1": [
        "answer_1 = (2.0, 1.0)",                     # the ridge forgotten
        "answer_1 = (7 / 8, 11 / 8)",                # the two entries swapped
    ],
    "40.2": [
        # slices transposed, but not reversed
        "def pull_by_slices(g, T):\n"
        "    back = torch.zeros(len(g), T.shape[0])\n"
        "    for j in range(len(g)):\n"
        "        for k in range(len(g)):\n"
        "            back[j] += g[k] @ T[..., (j - k) % len(g)].T\n"
        "    return back",
        # every token by the first slice alone
        "def pull_by_slices(g, T):\n"
        "    return g @ T[..., 0].T",
    ],
    "40.3": [
        # slice by slice, as if tokens did not mix
        "def fit_by_matrices(X_A, X_B):\n"
        "    slices = [torch.linalg.lstsq(X_A[..., k], X_B[..., k]).solution for k in range(X_A.shape[-1])]\n"
        "    return torch.stack(slices, -1)",
        # the unfolded tensors, without the block-circulant matrix
        "def fit_by_matrices(X_A, X_B):\n"
        "    one = torch.linalg.lstsq(unfold(X_A), unfold(X_B)).solution\n"
        "    return one[..., None].expand(-1, -1, X_A.shape[-1])",
    ],
    "40.4": [
        "answer_4 = 2",                              # the rank of the identity of A
        "answer_4 = 0",
    ],
}
