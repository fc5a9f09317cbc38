"""The smallest experiment: one token through a model, up to its logits."""

from glassworks.graph.backend import Inputs, Rows
from glassworks.graph.graph import Graph
from glassworks.graph.nodes import ALL_ROWS, Node, Ref

SITE = "logits"
TOUCH = Graph(
    (
        Node("read", SITE, (), (), (), 0, None),
        Node("save", SITE, (Ref(0),), (), (0,), ALL_ROWS, None),
    )
)
ONE_TOKEN = Inputs((Rows(ids=((0,),)),))
