"Two plausible wrong answers for each exercise of lesson 51: the check cell must refuse them."
WRONG = {
    "51.1": [
        "answer_1 = 2.2  # what a tenth of cosine is worth at the weight 22",
        "answer_1 = math.log(2)  # the tenth is forgotten",
    ],
    "51.2": [
        "def undominated(values):\n    return [int(values.total.argmin())]  # at these weights only",
        "def undominated(values):\n    losses = torch.stack(list(values.terms.values()), 1)\n"
        "    at_most = (losses[:, None] <= losses[None]).all(-1)\n"
        "    return (at_most.sum(0) == 1).nonzero()[:, 0].tolist()  # equals beat each other",
    ],
    "51.3": [
        "class Centre:\n    label = 'centre'\n\n    def __init__(self, lm, wanted):\n"
        "        self.model, self.centre = lm, lm.embed(lm.tokenize([wanted])[0]).mean(0)\n\n"
        "    def losses(self, embeds, mask=None):\n        return (embeds.mean(1) - self.centre).square().sum(-1)  # padding is averaged in\n\n"
        "    def exact(self, texts):\n        ids, mask = self.model.pad(self.model.tokenize(list(texts)))\n"
        "        return self.losses(self.model.embed(ids), mask)",
        "class Centre:\n    label = 'centre'\n\n    def __init__(self, lm, wanted):\n"
        "        self.model, self.centre = lm, lm.embed(lm.tokenize([wanted])[0]).mean(0)\n\n"
        "    def losses(self, embeds, mask=None):\n        mask = torch.ones_like(embeds[..., 0]) if mask is None else mask\n"
        "        mean = (embeds * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)\n"
        "        return (mean - self.centre).norm(dim=-1)  # not squared\n\n"
        "    def exact(self, texts):\n        ids, mask = self.model.pad(self.model.tokenize(list(texts)))\n"
        "        return self.losses(self.model.embed(ids), mask)",
    ],
}
