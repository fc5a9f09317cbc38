"""Write examples/tour.ipynb: the notebook's cells as text, run once so that its outputs are real.

`make docs` runs it. The cells are here, where they can be read and reviewed; the notebook is what people open.
"""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parents[1]
CELLS = [
    """# A tour of Glassworks

An experiment is a block. What is written in it becomes a *graph*: data that can be looked at, stored, sent and run
again. This notebook runs on the small model that comes with the package.""",
    """>import glassworks as gw

%load_ext glassworks
model = gw.load("toy")
model""",
    """## Look

A site is a named place in the forward pass. Reading it gives a Value, which knows its shape and has no numbers yet;
after the block a saved Value is its tensor.""",
    """>prompt = "The Eiffel Tower is in the city of"
with model.trace(prompt) as t:
    probs = model.layers[1].attn.probs.save("probs")     # [batch, heads, query, key]
    lens = [model.unembed(layer.output[:, -1]).softmax(-1).save() for layer in model.layers]
    top = model.logits[:, -1].argmax(-1).save("top")
model.decode(top)""",
    """A head a square, a query a line, a key a column: move the mouse over a cell for its number.""",
    """>probs""",
    """How sure each layer already is of the answer (the *logit lens*):""",
    """>answer = int(top)
[round(float(layer[0, answer]), 3) for layer in lens]""",
    """What ran is data, with the line that wrote each node:""",
    """>t.graph""",
    """## Change

A write replaces what passes at a site. What was read and saved before keeps what it was.""",
    """>with model.trace(prompt):
    before = model.layers[1].output[:, -1].save("before")
    model.layers[1].attn.heads[2].output = 0
    model.layers[1].mlp.neurons[:, -1] *= 2
    after = model.logits[:, -1].softmax(-1)[:, answer].save("after")
float(lens[-1][0, answer]), float(after)""",
    """## Patch

Several prompts in one block: each `invoke` adds rows, and values flow between them.""",
    """>with model.trace() as t:
    with t.invoke("The Colosseum is in the city of"):
        rome = model.layers[2].output[:, -1]
    with t.invoke(prompt):
        model.layers[2].output[:, -1] = rome
        patched = model.logits[:, -1].argmax(-1).save("patched")
model.decode(patched)""",
    """## Gradients""",
    """>with model.trace(prompt) as t:
    embedded = model.embed.output
    t.backward(model.logits[:, -1, answer].sum())
    attribution = (embedded.grad * embedded).sum(-1).save("attribution")
    words = t.tokens[0]
dict(zip(words, [round(a, 2) for a in attribution[0].tolist()]))""",
    """## Run it again, over many prompts

A recorded graph does not run; `model.run` fills its rows.""",
    """>with model.record() as t:
    model.layers[2].output[:, -1].save("resid")
    model.logits[:, -1].argmax(-1).save("top")
results = model.run(t.graph, [prompt, "The Colosseum is in the city of", "Big Ben is in the city of"])
results""",
]


def notebook() -> nbformat.NotebookNode:
    """The cells as a notebook, not yet run. A cell that begins with `>` is code."""
    cells = []
    for k, text in enumerate(CELLS):
        code = text.startswith(">")
        make = nbformat.v4.new_code_cell if code else nbformat.v4.new_markdown_cell
        cells.append(make(text[1:] if code else text, id=f"cell-{k}"))
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return nbformat.v4.new_notebook(cells=cells, metadata=kernel)


def main() -> None:
    made = notebook()
    NotebookClient(made, timeout=300, kernel_name="python3").execute()
    for cell in made.cells:
        cell.get("metadata", {}).pop("execution", None)
        if "outputs" in cell:  # what libraries say to the terminal is no part of the tour
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    nbformat.write(made, HERE / "examples" / "tour.ipynb")


if __name__ == "__main__":
    main()
