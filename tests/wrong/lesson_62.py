"Two wrong answers for each exercise of lesson 62; its checks must fail for all of them."
WRONG = {
    "62.1": ["""def predicted_changes(grad, table, ids):
    return grad @ table.T
""", """def predicted_changes(grad, table, ids):
    slopes = grad @ table.T
    return slopes - slopes.mean(1, keepdim=True)
"""],
    "62.2": ["answer_2 = 6.0  # the exact change itself", "answer_2 = 9.0"],
    "62.3": ["""def projected(x, table):
    return (x @ table.T).argmax(1)
""", """def projected(x, table):
    return torch.cdist(x, table).argmin(1)
"""],
    "62.4": ["answer_4 = 6 * 256", "answer_4 = 256**6 - 1"],
}
