"Two known wrong answers for each exercise of lesson 52."
WRONG = {
    "52.1": ["answer_1 = 6.40 - 1.5", "answer_1 = (2.0 - 1.5) / 22"],
    "52.2": [
        '''
def recall(predicted, exact):
    "The best 10 % in the predicted best 5 %: the wrong way round."
    n = len(exact)
    best, kept = np.argsort(exact)[: max(1, n // 10)], np.argsort(predicted)[: max(1, n // 20)]
    return float(np.isin(best, kept).mean())
''',
        '''
def recall(predicted, exact):
    "The largest instead of the smallest."
    n = len(exact)
    best, kept = np.argsort(-exact)[: max(1, n // 20)], np.argsort(-predicted)[: max(1, n // 10)]
    return float(np.isin(best, kept).mean())
''',
    ],
    "52.3": [
        '''
def adjoint_slice(T, grad):
    "The published slice: no reversal."
    l = len(grad)
    return sum(T[..., l - 1 - k] @ grad[k] for k in range(l))
''',
        '''
def adjoint_slice(T, grad):
    "The first token's share instead of the last one's."
    return sum(T[..., k] @ grad[k] for k in range(len(grad)))
''',
    ],
}
