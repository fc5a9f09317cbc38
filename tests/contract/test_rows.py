"""Rows: prompts, padding, several invokes, text and its positions, plain modules, what travels."""

import pytest
import torch
from torch import nn

from contract.places import OTHER, PROMPT, SOURCE, START, Place, close, placed

SHORT = PROMPT[:2]
RAGGED = [PROMPT, SHORT, OTHER]
CITY = " Paris is in the city of Rome"
TOWN = " the city is in Paris"


@pytest.mark.sentence("rows.1")
def test_invokes(place: Place) -> None:
    """`with t.invoke(prompt, **arguments):` adds rows."""
    saved = []
    with place.model.trace() as t:
        for prompt in RAGGED:
            with t.invoke(prompt):
                saved.append((place.model.layers[1].output.save(), place.model.logits.save()))
    for prompt, (hidden, logits) in zip(RAGGED, saved, strict=True):
        expected = place.oracle.forward(prompt)
        assert hidden.value.shape == (1, len(prompt), 32)
        close(hidden.value, expected["layers.1.output"])
        close(logits.value, expected.logits)


@pytest.mark.sentence("rows.2")
def test_a_lone_prompt(case: Place) -> None:
    """A lone prompt sees exactly its own tokens."""
    with case.block(SHORT):
        ids = case.model.ids.save()
        hidden = case.model.layers[1].output
        assert tuple(hidden.shape) == (1, 2, 32)
        saved = hidden.save()
    assert ids.value.tolist() == [SHORT]
    close(saved.value, case.oracle.forward(SHORT)["layers.1.output"])


@pytest.mark.sentence("rows.2")
def test_a_lone_prompt_in_company(place: Place) -> None:
    """A lone prompt sees exactly its own tokens."""
    with place.model.trace() as t:
        with t.invoke(PROMPT):
            place.model.logits.save()
        with t.invoke(SHORT):
            ids = place.model.ids.save()
            hidden = place.model.layers[1].output
            assert tuple(hidden.shape) == (1, 2, 32)
            first = hidden[:, 0].save()
            hidden[:, 0] = 0.0
            logits = place.model.logits.save()

    def change(tensor: torch.Tensor, _: int) -> torch.Tensor:
        tensor[:, 0] = 0.0
        return tensor

    assert ids.value.tolist() == [SHORT]
    close(first.value, place.oracle.forward(SHORT)["layers.1.output"][:, 0])
    close(logits.value, place.oracle.forward(SHORT, {"layers.1.output": change}).logits)


@pytest.mark.sentence("rows.3", "rows.5")
def test_left_padding(case: Place) -> None:
    """Several prompts in one invoke are left-padded: `[:, -1]` is every row's last token; ... positions and masks are
    right on every family."""
    with case.block(RAGGED):
        last = case.model.logits[:, -1]
        assert tuple(last.shape) == (3, 97)
        saved = last.save()
    for n, prompt in enumerate(RAGGED):
        close(saved.value[n], case.oracle.forward(prompt).logits[0, -1])


@pytest.mark.sentence("rows.3", "rows.5")
def test_left_padding_of_a_source(encdec: Place) -> None:
    """positions and masks are right on every family."""
    prompts = [SOURCE, SOURCE[:2]]
    with encdec.model.trace(prompts, decoder_input_ids=START.expand(2, -1)):
        last = encdec.model.encoder.layers[2].output[:, -1].save()
        logits = encdec.model.logits.save()
    for n, prompt in enumerate(prompts):
        expected = encdec.oracle.forward(prompt, decoder_input_ids=START)
        close(last.value[n], expected["encoder.layers.2.output"][0, -1])
        close(logits.value[n], expected.logits[0])


@pytest.mark.sentence("rows.4")
def test_padded_positions(place: Place) -> None:
    """padded positions read as 0 and ignore writes;"""
    with place.model.trace([PROMPT, SHORT]):
        place.model.layers[0].output += 1
        hidden = place.model.layers[0].output.save()
        place.model.layers[1].output[:, 0] = 100.0
        later = place.model.layers[1].output.save()
        logits = place.model.logits.save()
    expected = place.oracle.forward(SHORT, {"layers.0.output": lambda h, _: h + 1})
    assert (hidden.value[1, :3] == 0).all()
    assert (later.value[1, :3] == 0).all()
    close(hidden.value[1:, 3:], expected["layers.0.output"])
    close(logits.value[1:, 3:], expected.logits)

    def change(tensor: torch.Tensor, _: int) -> torch.Tensor:
        tensor[:, 0] = 100.0
        return tensor

    changes = {"layers.0.output": lambda h, _: h + 1, "layers.1.output": change}
    close(logits.value[:1], place.oracle.forward(PROMPT, changes).logits, tolerance=1e-4)


@pytest.mark.sentence("rows.6")
def test_all_rows(place: Place) -> None:
    """Outside an invoke, in a block that has invokes, sites mean all rows."""
    model = place.model
    with model.trace() as t:
        with t.invoke(PROMPT):
            own = model.layers[1].output[:, -1].save()
        with t.invoke([SHORT, OTHER]):
            pass
        every = model.layers[1].output[:, -1]
        assert tuple(every.shape) == (3, 32)
        both = every.save()
        model.layers[1].output[:, -1] = 0.5
        logits = model.logits[:, -1].save()

    def change(tensor: torch.Tensor, _: int) -> torch.Tensor:
        tensor[:, -1] = 0.5
        return tensor

    for n, prompt in enumerate([PROMPT, SHORT, OTHER]):
        close(both.value[n], place.oracle.forward(prompt)["layers.1.output"][0, -1])
        close(logits.value[n], place.oracle.forward(prompt, {"layers.1.output": change}).logits[0, -1])
    close(own.value, place.oracle.forward(PROMPT)["layers.1.output"][:, -1])


@pytest.mark.sentence("rows.7")
def test_between_invokes(inside: Place) -> None:
    """What one invoke reads at a site, another may write at that site in the same pass."""
    model = inside.model
    path = inside.embed
    source = inside.oracle.forward(OTHER)["layers.1.output"][:, -1]

    def change(tensor: torch.Tensor, _: int) -> torch.Tensor:
        tensor[:, 1] = source
        return tensor

    with inside.counted(path) as ran, model.trace() as t:
        with t.invoke(PROMPT):
            model.layers[1].output[:, 1] = 0
            patched = model.logits.save()
        with t.invoke(OTHER):
            vector = model.layers[1].output[:, -1]
            own = model.logits.save()
        with t.invoke(PROMPT):
            model.layers[1].output[:, 1] = vector
            patched = model.logits.save()
    assert len(ran) == 1
    close(patched.value, inside.oracle.forward(PROMPT, {"layers.1.output": change}).logits)
    close(own.value, inside.oracle.forward(OTHER).logits)


@pytest.mark.sentence("rows.7")
def test_between_invokes_whose_lines_are_swapped(place: Place) -> None:
    """What one invoke reads at a site, another may write at that site in the same pass."""
    model = place.model
    first, second = (place.oracle.forward(prompt)["layers.1.output"][:, -1] for prompt in (PROMPT, OTHER))
    with model.trace() as t:
        with t.invoke(PROMPT):
            a = model.layers[1].output[:, -1]
        with t.invoke(OTHER):
            b = model.layers[1].output[:, -1]
            model.layers[1].output[:, -1] = a
            one = model.layers[1].output[:, -1].save()
            kept = b.save()
    close(one.value, first)
    close(kept.value, second)


@pytest.mark.sentence("rows.8")
@pytest.mark.parametrize("rows", [1, 2, 3, 64])
def test_rows_a_pass(inside: Place, rows: int) -> None:
    """`model.trace(..., rows=64)` runs at most 64 rows a pass, with the same results for any number."""
    model, saved, sizes = inside.model, [], []
    path = inside.embed
    handle = inside.bare.get_submodule(path).register_forward_hook(lambda _, args, out: sizes.append(len(args[0])))
    prompts = [PROMPT, SHORT, OTHER, PROMPT[1:], OTHER[1:]]
    with model.trace(rows=rows) as t:
        for prompt in prompts:
            with t.invoke(prompt):
                model.layers[0].output[:, -1] *= 2
                saved.append(model.logits.save())
    handle.remove()

    def change(tensor: torch.Tensor, _: int) -> torch.Tensor:
        tensor[:, -1] *= 2
        return tensor

    for prompt, logits in zip(prompts, saved, strict=True):
        close(logits.value, inside.oracle.forward(prompt, {"layers.0.output": change}).logits)
    assert max(sizes) <= rows
    assert sum(sizes) == len(prompts)


@pytest.mark.sentence("rows.8")
@pytest.mark.parametrize("rows", [1, 2, 64])
def test_rows_a_pass_of_one_list(place: Place, rows: int) -> None:
    """`model.trace(..., rows=64)` runs at most 64 rows a pass, with the same results for any number."""
    with place.model.trace(RAGGED, rows=rows):
        logits = place.model.logits[:, -1].save()
    for n, prompt in enumerate(RAGGED):
        close(logits.value[n], place.oracle.forward(prompt).logits[0, -1])


@pytest.mark.sentence("rows.16")
def test_arguments_of_the_model(case: Place) -> None:
    """keyword arguments go to the model."""
    positions = torch.tensor([[0, 3, 4, 9, 11]])
    expected = case.oracle.forward(PROMPT, position_ids=positions).logits
    with case.block(PROMPT, position_ids=positions):
        logits = case.model.logits.save()
    close(logits.value, expected)
    assert not torch.allclose(expected, case.oracle.forward(PROMPT).logits, atol=1e-3)


@pytest.mark.sentence("rows.1", "rows.16")
def test_arguments_of_an_invoke(place: Place) -> None:
    """`with t.invoke(prompt, **arguments):` adds rows. ... keyword arguments go to the model."""
    positions = torch.tensor([[0, 3, 4, 9, 11]])
    with place.model.trace() as t:
        with t.invoke(PROMPT, position_ids=positions):
            own = place.model.logits.save()
        with t.invoke(PROMPT):
            other = place.model.logits.save()
    close(own.value, place.oracle.forward(PROMPT, position_ids=positions).logits)
    close(other.value, place.oracle.forward(PROMPT).logits)


class Counting(nn.Module):
    """Remembers the shapes that it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.shapes.append(tuple(x.shape))
        return self.linear(x).relu()


@pytest.mark.sentence("rows.17")
def test_invokes_of_a_plain_module(blocks: str) -> None:
    """A plain module's invokes are passes of their own"""
    case = placed(Counting(), blocks)
    first, second = torch.randn(2, 4), torch.randn(5, 4)
    for _ in range(2):
        case.bare.shapes.clear()
        with case.model.trace() as t:
            with t.invoke(first):
                one = case.model.linear.output.save()
            with t.invoke(second):
                two = case.model.linear.output.save()
    close(one.value, case.bare.linear(first))
    close(two.value, case.bare.linear(second))
    assert case.bare.shapes == [(2, 4), (5, 4)]


@pytest.mark.sentence("rows.17")
def test_values_between_passes_of_a_plain_module(blocks: str) -> None:
    """A plain module's invokes are passes of their own"""
    case = placed(Counting(), blocks)
    first, second = torch.randn(2, 4), torch.randn(2, 4)
    with case.model.trace() as t:
        with t.invoke(first):
            value = case.model.linear.output
        with t.invoke(second):
            case.model.linear.output = value
            result = case.model.output.save()
    close(result.value, case.bare.linear(first).relu())


@pytest.mark.sentence("rows.18")
def test_the_site_table_of_a_plain_module(kind: str) -> None:
    """its site table is made from the first block's input and cached by shapes."""
    case = placed(Counting(), kind)
    assert case.bare.shapes == []
    counts = []
    for rows in (2, 2, 7, 2, 7):
        case.bare.shapes.clear()
        with case.block(torch.ones(rows, 4)):
            value = case.model.linear.output
            assert tuple(value.shape) == (rows, 3)
            saved = value.save()
        close(saved.value, case.bare.linear(torch.ones(rows, 4)))
        counts.append(len(case.bare.shapes))
    assert counts[0] > counts[1]
    assert counts[1:] == [1, counts[2], 1, 1]
