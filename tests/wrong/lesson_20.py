"Wrong answers to the exercises of lesson 20: plausible mistakes, each of which its check must find."
WRONG = {
    "20.1": [
        "answer_1 = [(0, 1), (1, 2), (2, 3), (3, 4)]    # every token a word of its own",
        "answer_1 = [(0, 2), (2, 4)]                    # spaces given to the word before them",
    ],
    "20.2": [
        # looks at neighbours only, where a token further back may reach further
        """
def cut_places(f: list[int], l: list[int]) -> list[int]:
    n = len(f)
    return [0] + [k for k in range(1, n) if l[k - 1] < f[k]] + [n] * (n > 0)
""",
        # lets two tokens of one whitespace word be cut apart
        """
def cut_places(f: list[int], l: list[int]) -> list[int]:
    n, big = len(f), float("inf")
    return [k for k in range(n + 1) if max(l[:k], default=-1) <= min(f[k:], default=big)]
""",
    ],
    "20.3": [
        'answer_3 = " "       # nothing but a space',
        'answer_3 = "🐕"      # MiniLM has [UNK] for it, which is a token',
    ],
}
