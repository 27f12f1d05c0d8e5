"Two plausible wrong answers for each exercise of lesson 50: the check cell must refuse them."
WRONG = {
    "50.1": [
        "answer_1 = [6 * math.log(2), 14 * math.log(2)]  # sums, not means",
        "answer_1 = [6 / 3, 14 / 5]  # in bits",
    ],
    "50.2": [
        "def jensen_shannon(log_p, log_q):\n    log_m = torch.logaddexp(log_p, log_q) - math.log(2)\n"
        "    return (log_p.exp() * (log_p - log_m)).sum(-1)  # one side only",
        "def jensen_shannon(log_p, log_q):\n    log_m = torch.logaddexp(log_p, log_q)  # no half\n"
        "    side = lambda r: (r.exp() * (r - log_m)).sum(-1)\n    return (side(log_p) + side(log_q)) / 2",
    ],
    "50.3": [
        "answer_3 = [32 * (205 + 5), 200 + 32 * (5 + 5)]  # the last target token is not read",
        "answer_3 = [32 * (205 + 4), 204 + 32 * (1 + 4)]  # what follows a difference is not shared",
    ],
}
