WRONG = {
    "00.1": ["answer_1 = 576 * 384  # one slice", "answer_1 = 576 * 3 * 384 * 3  # bcirc, in full"],
    "00.2": [
        "def counts(text):\n    both = zip(split(B.tokenizer, text), split(A.tokenizer, text))\n    return [(len(a.ids), len(b.ids)) for a, b in both]",
        "def counts(text):\n    both = zip(split(A.tokenizer, text), split(B.tokenizer, text, add_special_tokens=True))\n    return [(len(a.ids), len(b.ids)) for a, b in both]",
    ],
    "00.3": [
        "def mean_exact(ids):\n    return goal.exact([A.tokenizer.decode([i]) for i in ids.tolist()]).mean().item()  # the tokens alone",
        "def mean_exact(ids):\n    return goal.exact([text + A.tokenizer.decode(ids)]).item()  # all at once",
    ],
}
