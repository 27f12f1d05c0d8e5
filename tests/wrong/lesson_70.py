"Known wrong answers of lesson 70: the check of each exercise must fail for both."
WRONG = {
    "70.1": [
        "answer_1 = 20.0  # 4 / 0.2: the third word's own distance from the picture is forgotten",
        "answer_1 = 4 / 0.04",
    ],
    "70.2": [
        "def caption_objective(logprobs, text, image, weight=22.0):\n"
        "    cosine = text @ image / (np.linalg.norm(text) * np.linalg.norm(image))\n"
        "    return -float(np.sum(logprobs)) + weight * (1 - cosine)  # the sum in place of the mean\n",
        "def caption_objective(logprobs, text, image, weight=22.0):\n"
        "    return -float(np.mean(logprobs)) + weight * (1 - text @ image)  # no lengths taken out\n",
    ],
    "70.3": [
        "def best_ended(tried, end='.'):\n"
        "    best = min(tried, key=tried.get)  # the best of all, which may not have ended\n"
        "    return best if end is None or best.endswith(end) else None\n",
        "def best_ended(tried, end='.'):\n"
        "    return next((t for t in tried if end is None or t.endswith(end)), None)  # the first, not the best\n",
    ],
    "70.4": [
        "answer_4 = [64, 16]  # the ranker's own words are forgotten",
        "answer_4 = [72, 18]  # 8 words a step in place of 8 a text",
    ],
}
