"""Requests one by one: stop texts, log probabilities, seeds, streaming, failures, calling off, and what is refused."""

import threading
from typing import Any

import pytest
import torch

import glassworks as gw
from engine.test_schedules import check_nothing_left, lone, model_of
from families import FAMILIES
from glassworks.measure.clock import VirtualClock
from glassworks.memory.links import EmulatedLink
from glassworks.schedule import NAMES

EIFFEL, COLOSSEUM, LOUVRE = (f"The {name} is in the city of" for name in ("Eiffel Tower", "Colosseum", "Louvre"))
OTHERS = [[5, 9, 11], [7] * 20, [3, 4, 5, 6, 8, 9], [60, 61]]


@pytest.fixture(scope="module")
def toy() -> Any:
    return gw.load("toy")


def small(model: Any, **more: Any) -> Any:
    return gw.Engine(model, kv=gw.KVBudget(device="120KiB", host="2MiB"), rows=3, block_tokens=4, poison=True, **more)


# Stop texts.


@pytest.mark.parametrize("stop", [" Paris", "aris.", "ris", ".", "never"])
def test_a_stop_text_ends_a_reply_also_across_tokens(toy: Any, stop: str) -> None:
    engine = gw.Engine(toy)
    whole = str(toy.complete(EIFFEL, max_new_tokens=6))
    assert whole == " Paris."
    reply = engine.submit(gw.Request(EIFFEL, max_new_tokens=6, stop=["absent", stop])).wait()
    assert reply.text == whole.partition(stop)[0]
    assert reply.finish == ("stop" if stop in whole else "eos")
    assert engine.pending == 0


@pytest.mark.parametrize("alone", [False, True])
def test_a_stop_text_leaves_what_a_graph_makes_of_the_tokens(toy: Any, alone: bool) -> None:
    with toy.generate(EIFFEL, max_new_tokens=6) as t:
        with t.steps[:]:
            toy.layers[0].output[:, -1].save("read")
        (t.result + 0).save("all")
    engine = gw.Engine(toy)
    reply = engine.submit(gw.Request(EIFFEL, max_new_tokens=6, graph=t.graph, stop=["aris"]), alone=alone).wait()
    assert reply.finish == "stop"
    count = len(reply.tokens)
    assert (reply.saves["all"].tolist(), len(reply.saves["read"])) == ([reply.tokens], count)
    assert (reply.results.forwards, reply.results.alive) == (count, [[[True]] * count])


def test_a_stop_text_ends_what_runs_by_itself_too() -> None:
    class Letters:
        """A tokenizer of one letter a token, as far as an engine needs one."""

        def decode(self, ids: Any, **_: Any) -> str:
            return "".join(chr(48 + own) for own in ids)

    model, bare = model_of("bloom")
    expected = lone(bare, [5, 6, 7])
    engine = small(model)
    assert engine.why_not_packed is not None
    engine._core.text, before = Letters(), engine._core.text
    engine._replies._text = engine._core.text
    try:
        stop = Letters().decode(expected[2:4])
        reply = engine.submit(gw.Request([5, 6, 7], max_new_tokens=7, stop=[stop])).wait()
    finally:
        engine._core.text = before
    assert reply.tokens == expected[: Letters().decode(expected).find(stop) + 2]
    assert reply.finish == "stop"
    check_nothing_left(engine)


# Log probabilities.


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
def test_logprobs_are_those_of_a_lone_run(family: str) -> None:
    model, bare = model_of(family)
    engine = small(model)
    replies = engine.run([gw.Request(own, max_new_tokens=5, logprobs=3) for own in OTHERS])
    for prompt, reply in zip(OTHERS, replies, strict=True):
        logits = bare(torch.tensor([prompt + reply.tokens])).logits[0, len(prompt) - 1 : -1]
        expected = logits.detach().float().log_softmax(-1)
        assert len(reply.logprobs) == len(reply.tokens)
        for token, own, found in zip(reply.tokens, expected, reply.logprobs, strict=True):
            assert list(found) == [token, *(k for k in own.topk(3).indices.tolist() if k != token)]
            assert found == pytest.approx({k: float(own[k]) for k in found}, abs=1e-5)
    assert engine.submit(gw.Request(OTHERS[0], max_new_tokens=2)).wait().logprobs == [{}, {}]


# Seeds.


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
def test_what_is_drawn_depends_on_the_seed_and_not_on_the_company(family: str) -> None:
    model, _ = model_of(family)
    options = {"do_sample": True, "temperature": 1.7, "top_k": 40}
    alone = {}
    for seed in (0, 7, 8):
        alone[seed] = model.complete(OTHERS[0], max_new_tokens=6, seed=seed, **options).tokens
    assert len({tuple(own) for own in alone.values()}) > 1
    for company in ([], OTHERS, [OTHERS[0]] * 3):
        for policy in ("mlfq", "fcfs"):
            engine = small(model, policy=policy)
            others = [engine.submit(gw.Request(own, max_new_tokens=9, options=options, seed=3)) for own in company]
            mine = [gw.Request(OTHERS[0], max_new_tokens=6, options=options, seed=seed) for seed in alone]
            assert [own.tokens for own in engine.run(mine)] == list(alone.values())
            assert all(len(own.wait().tokens) for own in others)
            check_nothing_left(engine)


# Streaming.


def test_tokens_come_one_by_one_while_others_run(toy: Any) -> None:
    engine = gw.Engine(toy)
    first, second = (engine.submit(gw.Request(own, max_new_tokens=6)) for own in (EIFFEL, "Rome is"))
    seen = []
    for token in first:
        seen.append(token.id)
        assert first.tokens == seen
        if len(seen) == 1:
            assert not first.done
            assert len(second.tokens) == 1
    assert seen == toy.complete(EIFFEL, max_new_tokens=6).tokens
    assert "".join(token.text for token in first) == first.text == " Paris."
    timing = first.timing
    assert timing.arrival_s <= timing.first_token_s <= timing.end_s
    assert second.wait().tokens == toy.complete("Rome is", max_new_tokens=6).tokens


def test_several_threads_wait_at_once(toy: Any) -> None:
    engine = gw.Engine(toy, rows=3)
    prompts = [EIFFEL, COLOSSEUM, LOUVRE, "Rome is", "Paris is a city", "The keys near the cabinet"]
    found: dict[int, Any] = {}

    def ask(index: int) -> None:
        reply = engine.submit(gw.Request(prompts[index], max_new_tokens=8, user=str(index)))
        found[index] = [token.id for token in reply] if index % 2 else reply.wait().tokens

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert [found[k] for k in range(len(prompts))] == [toy.complete(own, max_new_tokens=8).tokens for own in prompts]
    assert engine.pending == 0


# Failures.


def broken(model: Any) -> gw.Graph:
    """A graph that fails at its third step."""
    with model.record() as t, t.steps[2:3]:
        hidden = model.layers[1].output
        hidden[:, torch.tensor(99)].save("x")
    return t.graph


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_what_a_graph_raises_ends_that_request_alone(family: str) -> None:
    model, bare = model_of(family)
    graph = broken(model)
    engine = small(model)
    graphs = [None, graph, None, None]
    replies = engine.run(
        [gw.Request(own, max_new_tokens=7, graph=mine) for own, mine in zip(OTHERS, graphs, strict=True)]
    )
    for k, (prompt, reply) in enumerate(zip(OTHERS, replies, strict=True)):
        if k != 1:
            assert reply.tokens == lone(bare, prompt)
            continue
        assert isinstance(reply.error, IndexError)
        assert any("test_requests.py" in note for note in reply.error.__notes__)
        assert reply.tokens == lone(bare, prompt)[:2]
        with pytest.raises(IndexError):
            reply.wait()
        with pytest.raises(IndexError):
            list(reply)
    check_nothing_left(engine)


# Calling off.


@pytest.mark.parametrize("family", ["llama", "bloom"])
@pytest.mark.parametrize("after", range(0, 12, 2))
def test_calling_off_at_any_moment_frees_all_and_lets_others_end(family: str, after: int) -> None:
    model, bare = model_of(family)
    clock = VirtualClock()
    engine = gw.Engine(
        model, kv=gw.KVBudget(device="90KiB" if family == "llama" else "300KiB", host="2MiB"), rows=2, block_tokens=4,
        poison=True, clock=clock, out=EmulatedLink(3e5, clock.now_s), back=EmulatedLink(3e5, clock.now_s),
    )  # fmt: skip
    replies = [engine.submit(gw.Request(own, max_new_tokens=7)) for own in OTHERS]
    for _ in range(after):
        engine.step()
    called_off = replies[after // 2 % 4]
    called_off.cancel()
    for reply, prompt in zip(replies, OTHERS, strict=True):
        if reply is called_off and reply.finish is None:
            with pytest.raises(gw.Cancelled):
                reply.wait()
            assert len(reply.tokens) < 7
        else:
            assert reply.wait().tokens == lone(bare, prompt)
    called_off.cancel()
    engine.drain()
    for _ in range(1000):  # copies that were under way
        clock.advance(1.0)
        engine.step()
        if engine.store is None or not engine.store.poll():
            break
    check_nothing_left(engine)


class Once:
    """Runs everybody for three steps, sends them off, and brings them back."""

    def __init__(self) -> None:
        self.turn = 0

    def arrive(self, job: Any, now_s: float) -> None:
        pass

    charge = finish = lambda self, *_: None

    def decide(self, jobs: Any, *, now_s: float, limits: Any, memory: Any) -> Any:
        from glassworks.schedule.base import Decision, Place

        self.turn += 1
        here = tuple(job for job in jobs if job.place in (Place.DEVICE, Place.NOWHERE))
        if self.turn == 4:
            return Decision(leave=here)
        return Decision(
            run=tuple((job, job.pending_tokens) for job in here),
            come=tuple(job for job in jobs if job.place is Place.HOST),
        )


@pytest.mark.parametrize("family", ["llama", pytest.param("bloom", marks=pytest.mark.slow)])
@pytest.mark.parametrize("place", ["leaving", "host", "coming"])
def test_calling_off_wherever_keys_and_values_are(family: str, place: str) -> None:
    model, bare = model_of(family)
    clock = VirtualClock()
    engine = gw.Engine(
        model, policy=Once(), kv=gw.KVBudget(device="1MiB", host="2MiB"), block_tokens=4, poison=True, clock=clock,
        out=EmulatedLink(1e4, clock.now_s), back=EmulatedLink(1e4, clock.now_s),
    )  # fmt: skip
    replies = [engine.submit(gw.Request(own, max_new_tokens=7)) for own in OTHERS]
    work = next(iter(engine._waiting))
    for _ in range(5000):
        if work.job.place.value == place:
            break
        if place in ("host", "coming") and work.job.place.value == "leaving":
            clock.advance(100.0)
            engine._poll()
        else:
            engine.step()
    assert work.job.place.value == place
    replies[0].cancel()
    with pytest.raises(gw.Cancelled):
        replies[0].wait()
    for reply, prompt in zip(replies[1:], OTHERS[1:], strict=True):
        assert reply.wait().tokens == lone(bare, prompt)
    clock.advance(1e6)
    engine._poll()
    check_nothing_left(engine)


@pytest.mark.parametrize("policy", NAMES)
def test_calling_off_before_it_began(policy: str) -> None:
    model, bare = model_of("llama")
    engine = small(model, policy=policy)
    replies = [engine.submit(gw.Request(own, max_new_tokens=7, expected_tokens=7)) for own in OTHERS]
    replies[1].cancel()
    assert engine.pending == 3
    for k in (0, 2, 3):
        assert replies[k].wait().tokens == lone(bare, OTHERS[k])
    with pytest.raises(gw.Cancelled):
        replies[1].wait()
    assert replies[1].tokens == []
    check_nothing_left(engine)


# What is refused.


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt": [9_999]}, "ids of this model"),
        ({"prompt": [[1, 2], [3]]}, "make a request of each"),
        ({"prompt": [5], "max_new_tokens": -1}, "max_new_tokens is an int of at least 0"),
        ({"prompt": [5], "stop": "x"}, r"stop is a list of texts"),
        ({"prompt": [5], "stop": [""]}, r"stop is a list of texts"),
        ({"prompt": [5], "stop": ["x"]}, "need a tokenizer"),
        ({"prompt": [5], "logprobs": 1.5}, "logprobs is an int"),
        ({"prompt": [5], "seed": -1}, "seed is an int"),
        ({"prompt": [5], "user": 3}, "user is a text"),
        ({"prompt": [5], "graph": 3}, "graph is a gw.Graph"),
        ({"prompt": [5], "options": {"warmth": 2}}, "option .warmth. is not known here; known"),
    ],
)
def test_bad_requests_are_refused_at_once(given: dict[str, Any], message: str) -> None:
    engine = small(model_of("llama")[0])
    with pytest.raises(gw.GlassworksError, match=message):
        engine.submit(gw.Request(**given))
    assert engine.pending == 0
    check_nothing_left(engine)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rows": 0}, "rows is an int of at least 1"),
        ({"tokens": 1.5}, "tokens is an int"),
        ({"policy": "lifo"}, "expected a policy"),
        ({"policy": "fcfs", "inner": "mlfq"}, "is for policy='fair'"),
        ({"kv": gw.KVBudget(device="1KiB")}, "1.0 KiB"),
    ],
)
def test_engines_that_cannot_be_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(gw.GlassworksError, match=message):
        gw.Engine(model_of("llama")[0], **given)


def test_one_bad_request_of_several_begins_none() -> None:
    engine = small(model_of("llama")[0])
    with pytest.raises(gw.InputError):
        engine.run([gw.Request([5]), gw.Request([9_999])])
    assert engine.pending == 0


# Corners.


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_no_new_tokens_only_reads_the_prompt(family: str) -> None:
    model, bare = model_of(family)
    with model.record() as t:
        model.logits[:, -1].save("last")
    engine = small(model)
    reply = engine.submit(gw.Request(OTHERS[0], max_new_tokens=0, graph=t.graph)).wait()
    assert (reply.tokens, reply.text, reply.finish, list(reply)) == ([], "", "length", [])
    [last] = reply.saves["last"]
    expected = bare(torch.tensor([OTHERS[0]])).logits[:, -1].detach()
    torch.testing.assert_close(last, expected, rtol=1e-9, atol=1e-9)
    assert engine.submit(gw.Request(OTHERS[1], max_new_tokens=0)).wait().tokens == []
    check_nothing_left(engine)


def test_an_encoder_decoder_runs_by_itself() -> None:
    bare = FAMILIES["t5"]().double()
    model = gw.wrap(bare)
    engine = gw.Engine(model)
    assert engine.why_not_packed is not None
    replies = engine.run([gw.Request(own, max_new_tokens=6) for own in OTHERS])
    for prompt, reply in zip(OTHERS, replies, strict=True):
        assert reply.tokens == model.complete(prompt, max_new_tokens=6).tokens
        said = bare.generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False)[0, 1:].tolist()
        assert reply.tokens == said
    check_nothing_left(engine)


def test_the_raw_model_gives_its_bits_between_steps() -> None:
    model, bare = model_of("llama")
    ids = torch.tensor([[5, 6, 7, 8]])
    before = bare(ids).logits
    engine = small(model)
    assert torch.equal(bare(ids).logits, before)
    for own in OTHERS:
        engine.submit(gw.Request(own, max_new_tokens=5))
    while engine.step():
        assert torch.equal(bare(ids).logits, before)


@pytest.mark.parametrize("policy", [{"policy": "srpt"}, {"policy": "fair", "inner": "srpt"}], ids=["srpt", "fair"])
def test_an_oracle_that_is_not_told_a_length_fails_that_request_alone(policy: dict[str, Any]) -> None:
    model, bare = model_of("llama")
    engine = small(model, **policy)
    told, untold = engine.run([gw.Request(OTHERS[0], max_new_tokens=7, expected_tokens=7), gw.Request(OTHERS[1])])
    assert told.tokens == lone(bare, OTHERS[0])
    with pytest.raises(gw.InputError, match="srpt is an oracle"):
        untold.wait()
    check_nothing_left(engine)
