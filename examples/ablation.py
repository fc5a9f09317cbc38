"""Ablation with `edit`: a model without one layer's attention, held beside the whole one, asked four skills."""

import glassworks as gw

QUESTIONS = {
    "fact": ("The Eiffel Tower is in the city of", " Paris"),
    "agreement": ("The keys near the cabinet", " are"),
    "induction": ("red moon dog tree red moon dog", " tree"),
    "indirect object": ("When Mary and John went to the store, John gave a drink to", " Mary"),
}

model = gw.load("toy")


def skills(subject: gw.Model) -> str:
    """The skills that are left."""
    left = [
        name for name, (prompt, word) in QUESTIONS.items() if subject.complete(prompt, max_new_tokens=1).text == word
    ]
    return ", ".join(left) or "nothing"


print(f"whole model:          {skills(model)}")
for number in range(len(model.layers)):
    with model.edit() as edited:
        edited.layers[number].attn.output[:] = 0
    print(f"no attention in {number}:    {skills(edited)}")
print(f"the original, still:  {skills(model)}")
