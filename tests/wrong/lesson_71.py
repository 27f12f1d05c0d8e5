"Two wrong answers for each exercise of lesson 71; its checks must fail for all of them."
WRONG = {
    "71.1": ["answer_1 = 0.9 + 0.2  # the price is not divided by the weight", "answer_1 = 0.895  # the wrong way"],
    "71.2": ["""def token_f1(found, true):
    a, b = set(found.lower().split()), set(true.lower().split())  # a word that occurs twice counts once
    return 2 * len(a & b) / (len(a) + len(b))
""", """from collections import Counter
def token_f1(found, true):
    shared = sum((Counter(found.lower().split()) & Counter(true.lower().split())).values())
    return shared / len(true.split())  # recall alone
"""],
    "71.3": ["answer_3 = [6 + 3, 20 + 10]  # what comes twice is counted twice", "answer_3 = [5, 26]"],
    "71.4": ["""def noisy(e, level, generator):
    return F.normalize(e + level * torch.randn(e.shape, generator=generator), dim=0)  # longer than the level
""", """def noisy(e, level, generator):
    direction = F.normalize(torch.randn(e.shape, generator=generator), dim=0)
    return e + level * direction  # not of length 1
"""],
}
