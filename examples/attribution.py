"""Attribution: which prompt tokens the answer comes from, as gradient times input at the embedding."""

import glassworks as gw

PROMPT = "When Mary and John went to the store, John gave a drink to"

model = gw.load("toy")
mary, john = model.token(" Mary"), model.token(" John")
with model.trace(PROMPT) as t:
    embedded = model.embed.output
    last = model.logits[:, -1]
    t.backward((last[:, mary] - last[:, john]).sum())
    score = (embedded * embedded.grad).sum(-1).save()
    tokens = t.tokens[0]

print("logit( Mary) - logit( John), token by token:")
for token, value in zip(tokens, score[0].tolist(), strict=True):
    print(f"  {token:8} {value:+7.2f}  {'#' * round(abs(value) * 2)}")
