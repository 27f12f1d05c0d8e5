"Known wrong answers of lesson 80: the check of each exercise must fail for both."
WRONG = {
    "80.1": [
        "answer_1 = 'a dog runs on the beach'  # a reference itself: p_1 is 1, and nothing is taken off",
        "answer_1 = 'cat'  # short, but no word of it is a person's",
    ],
    "80.2": [
        "answer_2 = 3  # the longest caption, with few pairs that a person has",
        "answer_2 = 1",
    ],
    "80.3": [
        "def exact_p(a, b):\n"
        "    d = [x - y for x, y in zip(a, b)]\n"
        "    signs = list(itertools.product([1, -1], repeat=len(a)))\n"
        "    sums = [sum(s * x for s, x in zip(row, d)) for row in signs]\n"
        "    return sum(x >= sum(d) - 1e-12 for x in sums) / len(signs)  # one side only\n",
        "def exact_p(a, b):\n"
        "    d = [x - y for x, y in zip(a, b)]\n"
        "    signs = list(itertools.product([1, -1], repeat=len(a)))\n"
        "    sums = [abs(sum(s * x for s, x in zip(row, d))) for row in signs]\n"
        "    return sum(x > abs(sum(d)) + 1e-12 for x in sums) / len(signs)  # the data itself left out\n",
    ],
    "80.4": [
        "def recall_mean(caption, reference):\n"
        "    c, r = caption.split(), reference.split()\n"
        "    same = len(set(c) & set(r))\n"
        "    return 1 / (0.85 * len(c) / same + 0.15 * len(r) / same) if same else 0.0  # leans to precision\n",
        "def recall_mean(caption, reference):\n"
        "    c, r = caption.split(), reference.split()\n"
        "    same = len(set(c) & set(r))\n"
        "    return 0.15 * same / len(c) + 0.85 * same / len(r)  # the arithmetic mean\n",
    ],
}
