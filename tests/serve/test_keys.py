"""Keys: kept as digests, known by id, and let in no more within half a second, whoever revokes them."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from glassworks.errors import InputError
from glassworks.serve.keys import Keys, digest_of, new_key
from glassworks.serve.state import State


@pytest.fixture
def state(tmp_path: Path) -> Any:
    with State.hold(tmp_path) as state:
        yield state


@pytest.fixture
def keys(state: State) -> Keys:
    return Keys(state, now_s=lambda: 5.0)


def test_a_key_is_known_by_its_id(keys: Keys) -> None:
    key = keys.add("ann", weight=2.5)
    row = keys.owner(key)
    assert row is not None
    assert (row.name, row.weight, row.created_s, row.revoked_s) == ("ann", 2.5, 5.0, None)
    assert row.id.startswith("key-")
    assert key not in row.id
    assert keys.is_live(row.id)
    assert keys.list() == [row]
    assert keys.owner(key + "x") is None
    assert keys.owner("") is None
    assert not keys.is_live("key-none")


def test_the_key_itself_is_nowhere_on_the_disk(keys: Keys, state: State) -> None:
    key = keys.add("ann")
    state.database.close()
    stored = b"".join(path.read_bytes() for path in state.folder.iterdir() if path.is_file())
    assert key.encode() not in stored
    assert digest_of(key).encode() in stored


def test_every_key_is_compared_whichever_matches(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    own = [keys.add(name) for name in "abc"]
    compared: list[str] = []

    def compare(a: str, b: str) -> bool:
        compared.append(b)
        return a == b

    monkeypatch.setattr("glassworks.serve.keys.hmac.compare_digest", compare)
    for key in own:
        assert keys.owner(key) is not None
        assert sorted(compared) == sorted(map(digest_of, own))
        compared.clear()


@pytest.mark.parametrize("by", ["name", "id"])
def test_a_revoked_key_is_let_in_no_more(keys: Keys, by: str) -> None:
    key, other = keys.add("ann"), keys.add("bob")
    ann = next(row for row in keys.list() if row.name == "ann")
    revoked = keys.revoke(getattr(ann, by))
    assert (revoked.id, revoked.revoked_s) == (ann.id, 5.0)
    assert keys.owner(key) is None
    assert not keys.is_live(ann.id)
    assert keys.owner(other) is not None
    assert {row.name: row.revoked_s for row in keys.list()} == {"ann": 5.0, "bob": None}
    with pytest.raises(InputError, match="no key that is let in is named 'ann'; there are bob"):
        keys.revoke("ann")
    again = keys.owner(keys.add("ann"))
    assert again is not None
    assert again.id != ann.id, "what the old key made is not the new one's"


def test_a_name_has_one_key(keys: Keys) -> None:
    keys.add("ann")
    with pytest.raises(InputError, match="'ann' has a key already"):
        keys.add("ann")


def test_a_key_that_was_made_elsewhere(keys: Keys) -> None:
    key = new_key()
    assert keys.add("ann", key=key) == key
    assert keys.owner(key) is not None
    with pytest.raises(InputError, match="added before, as 'ann'") as caught:
        keys.add("bob", key=key)
    assert key not in str(caught.value)


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "x" * 101])
def test_names_that_cannot_be(keys: Keys, name: str) -> None:
    with pytest.raises(InputError, match="1 to 100 printable characters"):
        keys.add(name)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
def test_weights_that_cannot_be(keys: Keys, weight: float) -> None:
    with pytest.raises(InputError, match="above 0"):
        keys.add("ann", weight=weight)
    assert keys.list() == []


def test_what_another_process_changes_is_seen_within_half_a_second(keys: Keys, state: State) -> None:
    key = keys.add("ann")
    row = keys.owner(key)
    assert row is not None
    code = "import sys; from glassworks.serve.keys import Keys; from glassworks.serve.state import State\n"
    code += "with State.visit(sys.argv[1]) as state: Keys(state).revoke('ann'); print(Keys(state).add('bob'))"
    command = [sys.executable, "-c", code, str(state.folder)]
    added = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    until_s = time.monotonic() + 0.5
    while time.monotonic() < until_s and (keys.is_live(row.id) or keys.owner(added) is None):
        time.sleep(0.02)
    assert not keys.is_live(row.id)
    assert keys.owner(key) is None
    assert keys.owner(added) is not None


def test_keys_outlive_the_service(tmp_path: Path) -> None:
    with State.hold(tmp_path) as state:
        key = Keys(state).add("ann")
    with State.hold(tmp_path) as state:
        assert Keys(state).owner(key) is not None
