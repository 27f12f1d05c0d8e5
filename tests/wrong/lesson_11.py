WRONG = {
    "11.1": ["answer_1 = [1 / 4] * 4  # divided once", "answer_1 = [1, 0, 0, 0]  # the inverse of the identity"],
    "11.2": [
        "def counterexample():\n    A = torch.eye(2, dtype=torch.float64)[..., None]\n    return A, 2 * A  # invertible: the rule holds",
        "def counterexample():\n    a = torch.ones(1, 1, 2, dtype=torch.float64)\n    return a, a  # single tubes commute: the rule holds",
    ],
    "11.3": [
        "def ridge_by_frequencies(A, B, lam):\n    F, H = frequencies(A), frequencies(B)\n    each = []\n"
        "    for f, h in zip(F, H):\n        each.append(torch.linalg.solve(f.mT @ f + lam * torch.eye(f.shape[1], dtype=f.dtype), f.mT @ h))\n"
        "    return from_frequencies(each, A.shape[-1])  # transposed, not conjugated",
        "def ridge_by_frequencies(A, B, lam):\n    each = []\n    for f, h in zip(frequencies(A), frequencies(B)):\n"
        "        G = f.mH @ f + lam / A.shape[-1] * torch.eye(f.shape[1], dtype=f.dtype)\n        each.append(torch.linalg.solve(G, f.mH @ h))\n"
        "    return from_frequencies(each, A.shape[-1])  # the ridge divided among the frequencies",
    ],
}
