"Two wrong answers for each exercise of lesson 61; its checks must fail for all of them."
WRONG = {
    "61.1": ["answer_1 = 10 * 4 * 16  # as if the first frontier were full", "answer_1 = 16 ** 10"],
    "61.2": ["""def continuations(nll, count, logprobs):
    return (nll - logprobs) / count
""", """def continuations(nll, count, logprobs):
    return nll / count - logprobs
"""],
    "61.3": ["""def two_of_each(new, older, beam):
    return sorted(new, key=lambda n: n.total)[:beam]
""", """def two_of_each(new, older, beam):
    kept = []
    for node in sorted(new, key=lambda n: n.total)[:beam]:
        if sum(k.parent == node.parent for k in kept) < 2:
            kept.append(node)
    return kept
"""],
}
