WRONG = {
    "10.1": ["answer_1 = [1, 0, 0]  # entry by entry", "answer_1 = [1, 1, 2]  # without the wrap"],
    "10.2": ["answer_2 = [0, 0, 0, 1]  # to the left", "answer_2 = [1, 0, 0, 0]  # stays in its place"],
    "10.3": ["answer_3 = [1.0, 0.0, 0.0]  # the identity", "answer_3 = [1.0, 1.0, 0.0]"],
    "10.4": [
        "def my_tprod(A, B):\n    return torch.einsum('mpl,pql->mql', A, B)",
        "def my_tprod(A, B):\n    A_hat, B_hat = (torch.fft.rfft(X).movedim(-1, 0) for X in (A, B))\n"
        "    return torch.fft.irfft((A_hat @ B_hat).movedim(0, -1))  # forgets n: odd l comes back even",
    ],
}
