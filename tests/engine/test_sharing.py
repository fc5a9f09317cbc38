"""Beginnings that several requests share, edited models, and blocks of `model.on(engine)` among other requests."""

from typing import Any

import pytest
import torch

import glassworks as gw
from engine.test_schedules import check_nothing_left, lone, model_of

BEGIN = [5, 9, 11, 4, 8, 6, 7, 3, 12, 13]
PROMPT = [5, 6, 7, 8, 9]


@pytest.fixture
def model() -> Any:
    return model_of("llama")[0]


@pytest.fixture
def bare() -> Any:
    return model_of("llama")[1]


def small(model: Any, **more: Any) -> Any:
    return gw.Engine(model, kv=gw.KVBudget(device="200KiB", host="2MiB"), block_tokens=4, poison=True, **more)


def writing(model: Any, steps: slice) -> Any:
    with model.record() as t, t.steps[steps]:
        model.layers[0].output[:] *= 1.5
    return t.graph


# Beginnings.


def test_equal_beginnings_of_one_user_are_computed_once(model: Any, bare: Any) -> None:
    engine = small(model)
    first, second = ([*BEGIN, own] for own in (20, 21))
    assert engine.submit(gw.Request(first, max_new_tokens=7, user="a")).wait().timing.shared_tokens == 0
    computed = engine.stats.prompt_tokens
    reply = engine.submit(gw.Request(second, max_new_tokens=7, user="a")).wait()
    assert reply.timing.shared_tokens == 8  # two full blocks
    assert engine.stats.prompt_tokens - computed == len(second) - 8
    assert reply.tokens == lone(bare, second)
    check_nothing_left(engine)


def test_the_whole_of_an_equal_prompt_leaves_a_token_to_compute(model: Any, bare: Any) -> None:
    engine = small(model)
    prompt = BEGIN[:8]
    for shared in (0, 4):  # the last token has to be computed, so its block cannot be shared
        reply = engine.submit(gw.Request(prompt, max_new_tokens=7)).wait()
        assert (reply.timing.shared_tokens, reply.tokens) == (shared, lone(bare, prompt))


def test_nothing_is_shared_between_users(model: Any, bare: Any) -> None:
    engine = small(model)
    for user in ("a", "b"):
        reply = engine.submit(gw.Request([*BEGIN, 20], max_new_tokens=7, user=user)).wait()
        assert (reply.timing.shared_tokens, reply.tokens) == (0, lone(bare, [*BEGIN, 20]))


def test_nothing_is_shared_where_it_was_declined(model: Any) -> None:
    engine = small(model, share=False)
    assert [engine.submit(gw.Request(BEGIN)).wait().timing.shared_tokens for _ in range(2)] == [0, 0]


@pytest.mark.parametrize("steps", [slice(None), slice(1, None)], ids=["at the prompt", "later"])
def test_what_a_graph_has_written_to_is_not_shared(model: Any, bare: Any, steps: slice) -> None:
    engine = small(model)
    prompt = [*BEGIN, 20]
    graph = writing(model, steps)
    alone = gw.Engine(model).submit(gw.Request(prompt, max_new_tokens=7, graph=graph)).wait().tokens
    assert alone != lone(bare, prompt)
    assert engine.submit(gw.Request(prompt, max_new_tokens=7, graph=graph)).wait().tokens == alone
    after = engine.submit(gw.Request(prompt, max_new_tokens=7)).wait()
    assert (after.timing.shared_tokens, after.tokens) == (0, lone(bare, prompt))
    again = engine.submit(gw.Request(prompt, max_new_tokens=7, graph=graph)).wait()
    assert again.tokens == alone
    assert again.timing.shared_tokens == (0 if steps.start is None else 8)  # its prompt is a plain one


def test_what_a_graph_only_reads_is_shared(model: Any, bare: Any) -> None:
    engine = small(model)
    prompt = [*BEGIN, 20]
    with model.record() as t, t.steps[1:]:
        model.layers[1].output.save("read")
    expected = gw.Engine(model).submit(gw.Request(prompt, max_new_tokens=5, graph=t.graph)).wait().saves["read"]
    for shared in (0, 8):
        reply = engine.submit(gw.Request(prompt, max_new_tokens=5, graph=t.graph)).wait()
        assert reply.timing.shared_tokens == shared
        for own, other in zip(reply.saves["read"], expected, strict=True):
            torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-9)


def test_a_graph_that_looks_at_its_prompt_sees_all_of_it(model: Any) -> None:
    engine = small(model)
    prompt = [*BEGIN, 20]
    engine.submit(gw.Request(prompt, max_new_tokens=2)).wait()
    with model.record() as t, t.steps[0]:
        model.layers[1].output.save("read")
    reply = engine.submit(gw.Request(prompt, max_new_tokens=2, graph=t.graph)).wait()
    assert reply.timing.shared_tokens == 0
    assert gw.values(reply.saves["read"]).shape[-2] == len(prompt)


def test_known_beginnings_make_way_for_requests(model: Any, bare: Any) -> None:
    engine = gw.Engine(model, kv=gw.KVBudget(device="24KiB"), block_tokens=4, poison=True)
    for k in range(12):
        prompt = [k + 3, *BEGIN]
        assert engine.submit(gw.Request(prompt, max_new_tokens=7)).wait().tokens == lone(bare, prompt)
    check_nothing_left(engine)


@pytest.mark.parametrize("new", [0, 3])
def test_a_pass_that_ended_early_leaves_nothing_to_share(model: Any, bare: Any, new: int) -> None:
    """Its last layers have computed no keys and values; a block of a graph that reads early steps ends so."""
    engine = small(model)
    prompt = BEGIN[:5] if new == 0 else BEGIN[:6]  # in the last step, a block of four is full
    shared = model.on(engine)
    if new:
        with shared.generate(prompt, max_new_tokens=new) as t, t.steps[0:new]:
            shared.layers[0].output.save()
    else:
        with shared.trace(prompt):
            shared.layers[0].output.save()
    longer = [*prompt, *lone(bare, prompt)[:new], 20]
    reply = engine.submit(gw.Request(longer, max_new_tokens=7)).wait()
    assert reply.tokens == lone(bare, longer)


def test_a_chunk_of_a_prompt_in_a_pass_that_others_would_end(model: Any, bare: Any) -> None:
    engine = small(model, tokens=6, policy="fcfs")
    long = [(7 * k) % 90 + 3 for k in range(40)]
    reply = engine.submit(gw.Request(long, max_new_tokens=7))
    with model.record() as t:
        model.layers[0].output[:, -1].save("read")
    looking = engine.submit(gw.Request([5], max_new_tokens=0, graph=t.graph))
    assert reply.wait().tokens == lone(bare, long)
    assert looking.wait().tokens == []


# Edited models.


def test_an_edited_model_runs_its_edits_in_every_request(model: Any, bare: Any) -> None:
    with model.edit() as edited:
        edited.layers[1].mlp.output[:] = 0
    expected = edited.complete(PROMPT, max_new_tokens=6).tokens
    assert expected != lone(bare, PROMPT)[:6]
    engine = small(edited)
    replies = engine.run([gw.Request(PROMPT, max_new_tokens=6), gw.Request([*BEGIN], max_new_tokens=6)])
    assert replies[0].tokens == expected
    assert replies[1].tokens == edited.complete(BEGIN, max_new_tokens=6).tokens
    assert small(model).submit(gw.Request(PROMPT, max_new_tokens=6)).wait().tokens == lone(bare, PROMPT)[:6]


# Blocks among requests.


def test_traces_generations_sessions_and_runs_go_on_an_engine(model: Any, bare: Any) -> None:
    engine = small(model)
    other = engine.submit(gw.Request(BEGIN, max_new_tokens=7))
    found = {}
    for name, own in (("plain", model), ("engine", model.on(engine))):
        with own.trace(PROMPT):
            own.layers[0].output[:, -1] *= 2
            traced = own.logits[:, -1].save()
        with own.generate(PROMPT, max_new_tokens=4) as t, t.steps[1:]:
            own.layers[1].output[:] *= 1.5
            read = own.layers[2].output.save()
        with own.session() as s:
            with own.trace(PROMPT):
                first = own.layers[0].output[:, -1]
            with own.trace(BEGIN):
                own.layers[0].output[:, -1] = first
                second = own.logits[:, -1].save()
        with own.record() as r:
            own.layers[1].output.mean(1).save("mean")
        ran = own.run(r.graph, [PROMPT, BEGIN], rows=2)["mean"]
        done = own.complete(PROMPT, max_new_tokens=4).tokens
        found[name] = [traced.value, *gw.values(read), second.value, *ran, t.result, torch.tensor(done)]
        del s
    assert len(found["plain"]) == len(found["engine"]) > 6
    for plain, engined in zip(found["plain"], found["engine"], strict=True):
        torch.testing.assert_close(engined, plain, rtol=1e-9, atol=1e-9)
    assert other.wait().tokens == lone(bare, BEGIN)
    check_nothing_left(engine)


def test_an_engine_of_another_model_is_refused(model: Any) -> None:
    with pytest.raises(gw.InputError, match="this engine runs another model"):
        model.on(gw.Engine(model_of("gpt2")[0]))


def test_a_live_block_is_refused_on_an_engine(model: Any) -> None:
    with pytest.raises(gw.ModelError, match="a live block"), model.on(small(model)).live(PROMPT):
        pass
