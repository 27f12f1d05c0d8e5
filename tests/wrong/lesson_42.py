"Wrong answers to the exercises of lesson 42, two each: their checks must refuse them."
WRONG = {
    "42.1": [
        "answer_1 = (1.0, 2.0, 0.0, 0.0)",           # the adapter itself
        "answer_1 = (1.0, 0.0, 0.0, 2.0)",           # its transpose, that is, the gradient of y_0
    ],
    "42.2": [
        # every position counts, the special tokens too
        "def share_kept(route, grad):\n"
        "    return 1.0",
        # source positions instead of target positions
        "def share_kept(route, grad):\n"
        "    used = np.concatenate([at.flatten() for at, _ in route.moves.values()])\n"
        "    square = grad.square().sum(-1).flatten()\n"
        "    return (square[np.unique(used[used >= 0])].sum() / square.sum()).item()",
    ],
    "42.3": [
        # pieces that share a token overwrite each other, and the pair is forgotten
        "def pull_long(adapter, g, n):\n"
        "    out = torch.zeros(n, adapter.d_source)\n"
        "    for l, s, t in adapter.pieces(n, len(g)):\n"
        "        tube = torch.zeros(1, l, adapter.d_target)\n"
        "        tube[0, : t.stop - t.start] = g[t]\n"
        "        out[s] = adapter.pullback(tube)[0][: s.stop - s.start]\n"
        "    return out",
        # only the first piece
        "def pull_long(adapter, g, n):\n"
        "    l, s, t = adapter.pieces(n, len(g))[0]\n"
        "    tube = torch.zeros(1, l, adapter.d_target)\n"
        "    tube[0, : t.stop - t.start] = g[t]\n"
        "    out = torch.zeros(n, adapter.d_source)\n"
        "    out[s] = adapter.pullback(tube, (s.stop - s.start, t.stop - t.start))[0][: s.stop - s.start]\n"
        "    return out",
    ],
    "42.4": [
        "answer_4 = 1 / 6",                          # slice 3 forgotten
        "answer_4 = 1 / 2",                          # the number for l = 4
    ],
}
