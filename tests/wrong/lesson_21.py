"Wrong answers to the exercises of lesson 21: plausible mistakes, each of which its check must find."
WRONG = {
    "21.1": [
        "answer_1 = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6)]    # the union of the ends",
        "answer_1 = [(3, 6)]                                            # without 0 in front",
    ],
    "21.2": [
        # pairs words by their order, which fits only where both cut the same
        """
def both(a: list[Word], b: list[Word]) -> tuple[list[Word], list[Word]]:
    n = min(len(a), len(b))
    return a[:n], b[:n]
""",
        # takes the ends of A alone for those of both
        """
def both(a: list[Word], b: list[Word]) -> tuple[list[Word], list[Word]]:
    ends, sides = sorted({w.last for w in a}), ([], [])
    for p, q in zip([0] + ends, ends):
        for words, out in zip((a, b), sides):
            inside = [w for w in words if p <= w.first and w.last <= q]
            ids = [i for w in inside for i in w.ids]
            start = inside[0].start if inside else 0
            text = "".join(w.text for w in inside)
            out.append(Word(text, ids, start, start + len(ids), p, q))
    return sides
""",
    ],
    "21.3": [
        # every group reads the first group's place, as the published code does
        """
def carry(groups: Groups, gradient: list[np.ndarray]) -> np.ndarray:
    start, stop = groups.target_start[0], groups.target_stop[0]
    return np.stack([gradient[b][start:stop].sum(0) for b in groups.row])
""",
        # takes the mean, which is the sum only where a group has one token
        """
def carry(groups: Groups, gradient: list[np.ndarray]) -> np.ndarray:
    places = zip(groups.row, groups.target_start, groups.target_stop)
    return np.stack([gradient[b][s:e].sum(0) / max(e - s, 1) for b, s, e in places])
""",
    ],
}
