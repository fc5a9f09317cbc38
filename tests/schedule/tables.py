"""Random tables of jobs and stores, and what every decision must respect."""

from collections import Counter

from hypothesis import strategies as st

from glassworks.schedule.base import Job, Limits, Memory, Place

FREE = {Place.NOWHERE, Place.DEVICE, Place.HOST}


@st.composite
def tables(draw, *, places=tuple(Place)):
    """Jobs, limits and a memory that agree with each other."""
    block_tokens = draw(st.sampled_from([1, 4, 16]))
    instant = draw(st.booleans())
    jobs = [draw(one(number, block_tokens, instant, places)) for number in range(draw(st.integers(1, 12)))]
    held = sum(job.held_blocks for job in jobs)
    free = draw(st.integers(0, 40))
    memory = Memory(block_tokens, held + free, free, draw(st.sampled_from([0, 5, 50, 10**6])), instant)
    limits = Limits(rows=draw(st.integers(1, 6)), tokens=draw(st.integers(1, 64)))
    return jobs, limits, memory


@st.composite
def one(draw, number, block_tokens, instant, places):
    prompt, produced = draw(st.integers(1, 60)), draw(st.integers(0, 20))
    place = draw(st.sampled_from([p for p in places if not (instant and p in (Place.LEAVING, Place.COMING))]))
    chunkable = draw(st.booleans())
    computed = prompt + produced - 1
    if place is Place.NOWHERE:
        computed = 0
    elif produced == 0:
        computed = draw(st.integers(1, prompt - 1)) if chunkable and prompt > 1 else 0
    if computed == 0:
        place, produced = Place.NOWHERE, draw(st.integers(0, 20))
    job = Job(number, float(draw(st.integers(0, 9))), prompt, 80, rows=draw(st.integers(1, 3)), chunkable=chunkable)
    job.user = draw(st.sampled_from("ab"))
    job.expected_tokens = draw(st.floats(1, 100))
    job.recomputable = draw(st.booleans())
    job.computed_tokens, job.produced_tokens, job.place = computed, produced, place
    if place in (Place.DEVICE, Place.LEAVING, Place.COMING):
        job.held_blocks = job.blocks(computed, block_tokens)
        job.own_blocks = draw(st.integers(0, job.held_blocks))
    job.served, job.level, job.queued = draw(st.integers(0, 8)), draw(st.integers(0, 3)), number
    job.last_served_s = max(job.arrival_s, float(draw(st.integers(0, 12))))
    return job


def check(decision, jobs, limits: Limits, memory: Memory):
    """Raises AssertionError where a decision breaks a rule."""
    running = [job for job, _ in decision.run]
    named = Counter(job.id for job in [*running, *decision.leave, *decision.drop])
    assert all(count == 1 for count in named.values()), "a job is in two lists"
    assert len({job.id for job in decision.come}) == len(decision.come)
    assert not {job.id for job in decision.come} & {job.id for job in [*decision.leave, *decision.drop]}
    assert all(job.place is Place.DEVICE for job in [*decision.leave, *decision.drop]), "only residents give up blocks"
    assert all(job.place is Place.HOST for job in decision.come)
    assert all(job.recomputable for job in decision.drop)
    for job in running:
        came = memory.instant and job in decision.come
        assert job.place in (Place.DEVICE, Place.NOWHERE) or came, "it is not ready"
    _check_batch(decision, limits)
    _check_blocks(decision, memory)


def _check_batch(decision, limits):
    assert sum(job.rows for job, _ in decision.run) <= limits.rows
    tokens = [(n * job.rows, job.chunkable or not job.is_prefilling) for job, n in decision.run]
    whole = [n for n, may_be_cut in tokens if not may_be_cut]
    excess = max(whole) if sum(n for n, _ in tokens) > limits.tokens and whole else 0
    assert sum(n for n, _ in tokens) - excess <= limits.tokens
    for job, n in decision.run:
        assert 1 <= n <= job.pending_tokens
        assert n == job.pending_tokens or job.chunkable


def _check_blocks(decision, memory):
    bt = memory.block_tokens
    free = memory.free_blocks + sum(job.own_blocks for job in decision.drop)
    if memory.instant:
        free += sum(job.own_blocks for job in decision.leave)
    running = {job.id for job, _ in decision.run}
    need = sum(max(0, job.blocks(job.computed_tokens + n, bt) - job.held_blocks) for job, n in decision.run)
    need += sum(job.blocks(job.computed_tokens, bt) for job in decision.come if job.id not in running)
    assert need <= free, "more blocks than there are"
    assert sum(job.own_blocks for job in decision.leave) <= memory.host_free_blocks
