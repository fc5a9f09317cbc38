"""An experiment as a file: record a graph, store it, load it, and run it over many prompts in batches."""

import tempfile
from pathlib import Path

import torch

import glassworks as gw

model = gw.load("toy")
cities = ["Paris", "Rome", "Berlin", "London", "Moscow", "Athens", "Tokyo", "Cairo"]
countries = ["France", "Italy", "Germany", "England", "Russia", "Greece", "Japan", "Egypt"]

with model.record() as t:
    model.layers[-1].output[:, -1].save("mean", reduce="mean")
    model.logits[:, -1].argmax(-1).save("answer")
print(t.graph)

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "mean.safetensors"
    t.graph.save(path)
    graph = gw.Graph.load(path)
print(f"the same graph after storing: {graph == t.graph}")

capitals = model.run(graph, [f"The capital of {country} is" for country in countries], rows=4)
places = model.run(graph, [f"{city} is a city in" for city in cities], rows=4)
print("capitals: ", *[model.decode(token) for token in capitals["answer"].tolist()])
print("countries:", *[model.decode(token) for token in places["answer"].tolist()])
cosine = torch.cosine_similarity(capitals["mean"], places["mean"], dim=-1)
print(f"cosine between the two mean residuals {list(capitals['mean'].shape)}: {float(cosine):.2f}")
