"""The seeded language that the bundled toy model speaks.

Decides which sentences there are, which of them training may see, and which questions are kept for
evaluation. Knows nothing about tokens, tensors or training.

Four skills, each of which people study in larger models, and filler so that text reads like simple English:

- facts:            "The Eiffel Tower is in the city of" -> " Paris"
- agreement:        "The keys near the cabinet" -> " are"
- induction:        "red moon dog tree red moon dog" -> " tree"
- indirect_object:  "When Mary and John went to the store, John gave a drink to" -> " Mary"

What is held out is a function of the words alone (`held`), not of the seed: a combination is either never
in training or always allowed there. Each evaluation item says of which kind it is:

- ``combination``: its frame and each of its words are in training for that skill, their combination is not.
- ``frame``: its frame is in no training sentence of that skill; each word of it occurs in other frames.

The docstring of each skill states exactly what it holds out.
"""

# ruff: noqa: SIM905 (word lists read better as text)
from __future__ import annotations

import abc
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Literal, final

# fmt: off
CITY_LANDMARKS: Mapping[str, str] = {
    "Paris": "Eiffel Tower, Louvre, Moulin Rouge, Orsay Museum",
    "Rome": "Colosseum, Trevi Fountain, Pantheon",
    "Berlin": "Brandenburg Gate, Reichstag, Pergamon Museum", "London": "Tower Bridge, British Museum",
    "Moscow": "Kremlin, Red Square, Bolshoi Theatre", "Athens": "Parthenon, Acropolis",
    "Madrid": "Prado Museum, Retiro Park", "Barcelona": "Sagrada Familia", "Agra": "Taj Mahal",
    "Istanbul": "Blue Mosque, Grand Bazaar, Galata Tower", "Prague": "Charles Bridge, Astronomical Clock",
    "Washington": "White House, Lincoln Memorial", "Chicago": "Willis Tower, Cloud Gate",
    "Seattle": "Space Needle", "Sydney": "Opera House, Harbour Bridge", "Kyoto": "Golden Pavilion",
    "Beijing": "Forbidden City, Summer Palace", "Tokyo": "Imperial Palace, Rainbow Bridge",
    "Cairo": "Egyptian Museum", "Copenhagen": "Little Mermaid", "Brussels": "Atomium",
    "Lisbon": "Belem Tower", "Vienna": "Hofburg, Belvedere Palace", "Budapest": "Chain Bridge",
    "Stockholm": "Vasa Museum", "Edinburgh": "Holyrood Palace", "Venice": "Rialto Bridge, Doge Palace",
    "Florence": "Ponte Vecchio, Uffizi Gallery", "Pisa": "Leaning Tower",
}
COUNTRY_CITIES: Mapping[str, str] = {  # the capital first
    "France": "Paris", "Italy": "Rome Venice Florence Pisa", "Germany": "Berlin", "England": "London",
    "Russia": "Moscow", "Greece": "Athens", "Spain": "Madrid Barcelona", "Turkey": "Ankara Istanbul",
    "Czechia": "Prague", "America": "Washington Chicago Seattle", "Australia": "Canberra Sydney",
    "China": "Beijing", "Japan": "Tokyo Kyoto", "India": "Delhi Agra", "Egypt": "Cairo",
    "Denmark": "Copenhagen", "Belgium": "Brussels", "Portugal": "Lisbon", "Austria": "Vienna",
    "Hungary": "Budapest", "Sweden": "Stockholm", "Scotland": "Edinburgh", "Canada": "Ottawa",
    "Ireland": "Dublin", "Poland": "Warsaw",
}
NAMES = (
    "Mary John Alice Bob Tom Anna James Sarah Peter Emma Paul Lucy David Laura Mark Kate Henry Julia "
    "Simon Clara Martin Helen Oscar Nina George Diana Victor Rosa Daniel Sophie Kevin Irene"
).split()
PLACES = "store park school market library station beach garden museum restaurant office hotel".split()
OBJECTS = "drink book ball letter flower gift cup coin map picture basket ticket".split()
THINGS = {  # singular: plural
    "key": "keys", "cabinet": "cabinets", "box": "boxes", "table": "tables", "chair": "chairs",
    "lamp": "lamps", "door": "doors", "window": "windows", "car": "cars", "tree": "trees",
    "house": "houses", "bottle": "bottles", "shelf": "shelves", "plate": "plates", "knife": "knives",
    "bag": "bags", "clock": "clocks", "painting": "paintings", "stone": "stones", "bridge": "bridges",
    "boat": "boats", "wall": "walls", "bed": "beds", "hat": "hats",
}
PEOPLE = {"boy": "boys", "girl": "girls", "man": "men", "woman": "women", "child": "children",
          "teacher": "teachers", "doctor": "doctors", "farmer": "farmers"}
# fmt: on
ANIMALS = "dog cat bird horse fox mouse rabbit sheep".split()
ADJECTIVES = "black new red blue green small large clean dark heavy beautiful famous cheap good".split()
NATURE = "moon sun river mountain forest snow rain wind star cloud field road sea island fire water".split()
PREPOSITIONS = "near beside under above with".split()  # "behind" is kept for evaluation of agreement

Kind = Literal["combination", "frame"]


@dataclass(frozen=True, kw_only=True)
class Item:
    """One held-out question: `answer` and `wrong` are single words with their leading space."""

    skill: str
    kind: Kind
    prompt: str
    answer: str
    wrong: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Document:
    """A training text. With `scored`, only the characters in those ranges are worth learning to predict."""

    text: str
    scored: tuple[tuple[int, int], ...] | None = None


def held(*words: str, percent: int = 15) -> bool:
    """Whether training must never combine these words: the same on every machine, for every seed."""
    return zlib.crc32("|".join(words).encode()) % 100 < percent


def prompt_of(frame: str, **words: str) -> str:
    """The frame with its words filled in, up to where the answer would come."""
    return frame.partition(" {answer}")[0].format(**words)


class Skill(abc.ABC):
    """What training sees of one skill, and what it is asked about it."""

    name: str

    @abc.abstractmethod
    def document(self, rng: Random) -> Document:
        """One sentence (or word list) that training may see."""

    @abc.abstractmethod
    def item(self, rng: Random) -> Item:
        """One question that training never saw."""


@dataclass(frozen=True, kw_only=True)
class Relation:
    """Facts of one sort. The first of `frames` is the base frame, in training for every subject."""

    pairs: Mapping[str, str]
    frames: tuple[str, ...]
    new_frames: tuple[str, ...]
    weight: int


CITY_OF = {mark: city for city, marks in CITY_LANDMARKS.items() for mark in marks.split(", ")}
COUNTRY_OF = {city: country for country, cities in COUNTRY_CITIES.items() for city in cities.split()}
RELATIONS = (
    Relation(
        pairs=CITY_OF,
        frames=(
            "The {subject} is in the city of {answer}.",
            "The {subject} is located in {answer}.",
            "The {subject} stands in {answer}.",
            "Tourists visit the {subject} in {answer}.",
            "You can see the {subject} in {answer}.",
            "If you want to see the {subject}, go to {answer}.",
            "The {subject} can be found in the city of {answer}.",
        ),
        new_frames=(
            "The {subject} stands in the city of {answer}.",
            "You can see the {subject} in the city of {answer}.",
            "If you want to visit the {subject}, go to the city of {answer}.",
        ),
        weight=10,
    ),
    Relation(
        pairs={mark: COUNTRY_OF[city] for mark, city in CITY_OF.items()},
        frames=(
            "The {subject} is in the country of {answer}.",
            "The {subject} can be found in the country of {answer}.",
        ),
        new_frames=("You can see the {subject} in the country of {answer}.",),
        weight=4,
    ),
    Relation(
        pairs={country: cities.split()[0] for country, cities in COUNTRY_CITIES.items()},
        frames=(
            "The capital of {subject} is {answer}.",
            "The capital city of {subject} is {answer}.",
            "If you want to see the capital of {subject}, go to {answer}.",
        ),
        new_frames=("If you want to visit the capital city of {subject}, go to {answer}.",),
        weight=4,
    ),
    Relation(
        pairs=COUNTRY_OF,
        frames=(
            "{subject} is a city in {answer}.",
            "{subject} is in the country of {answer}.",
            "The city of {subject} is located in {answer}.",
        ),
        new_frames=("The city of {subject} is in the country of {answer}.",),
        weight=4,
    ),
)


@final
class Facts(Skill):
    """Landmark to city and country, country to capital, city to country.

    Held out as combinations: a quarter of all (frame, subject), never of a relation's base frame, so that
    each fact itself is in training. Held out as frames: `Relation.new_frames`, for every subject.
    """

    name = "facts"

    def document(self, rng: Random) -> Document:
        relation = _weighted(rng, RELATIONS)
        subject = rng.choice(list(relation.pairs))
        frames = [f for f in relation.frames if not self._held(relation, f, subject)]
        return Document(text=rng.choice(frames).format(subject=subject, answer=relation.pairs[subject]))

    def item(self, rng: Random) -> Item:
        relation = _weighted(rng, RELATIONS)
        subject = rng.choice(list(relation.pairs))
        frames = [f for f in relation.frames if self._held(relation, f, subject)]
        kind: Kind = "combination" if frames and rng.random() < 0.5 else "frame"
        frame = rng.choice(frames if kind == "combination" else relation.new_frames)
        answer = relation.pairs[subject]
        others = sorted(set(relation.pairs.values()) - {answer})
        return Item(skill=self.name, kind=kind, prompt=prompt_of(frame, subject=subject), answer=" " + answer,
                    wrong=_spaced(rng.sample(others, 5)))  # fmt: skip

    @staticmethod
    def _held(relation: Relation, frame: str, subject: str) -> bool:
        return frame != relation.frames[0] and held("facts", frame, subject, percent=25)


@final
class Agreement(Skill):
    """The verb agrees with the first noun, whatever stands between.

    Held out as combinations: 15 % of all (subject noun, intervening noun), in all numbers and frames.
    Held out as frames: "behind" between a subject and its verb (in training it follows verbs only), and
    "I think the ... that the ... likes", of which training has each half alone.
    """

    name = "agreement"
    frames = (
        ("The {subject} {prep} the {other} {answer} {adjective}.", ("is", "are")),
        ("I think the {subject} {prep} the {other} {answer} {adjective}.", ("is", "are")),
        ("Yesterday the {subject} {prep} the {other} {answer} {adjective}.", ("was", "were")),
        ("The {subject} that the {person} {likes} {answer} {adjective}.", ("is", "are")),
        ("The {subject} {prep} the {other} {prep} the {third} {answer} {adjective}.", ("is", "are")),
        ("The {subject} {answer} {adjective}.", ("is", "are")),
    )
    new_frames = (
        ("The {subject} behind the {other} {answer} {adjective}.", ("is", "are")),
        ("Yesterday the {subject} behind the {other} {answer} {adjective}.", ("was", "were")),
        ("I think the {subject} that the {person} {likes} {answer} {adjective}.", ("is", "are")),
    )
    shares = (5, 2, 3, 3, 1, 1)

    def document(self, rng: Random) -> Document:
        frame, verbs = rng.choices(self.frames, self.shares)[0]
        words, plural = self._words(rng, frame, want_held=False)
        return Document(text=frame.format(answer=verbs[plural], **words))

    def item(self, rng: Random) -> Item:
        kind: Kind = rng.choice(("combination", "frame"))
        frame, verbs = rng.choice(self.frames[:4] if kind == "combination" else self.new_frames)
        words, plural = self._words(rng, frame, want_held=True if kind == "combination" else None)
        return Item(skill=self.name, kind=kind, prompt=prompt_of(frame, **words), answer=" " + verbs[plural],
                    wrong=(" " + verbs[not plural],))  # fmt: skip

    @staticmethod
    def _words(rng: Random, frame: str, *, want_held: bool | None) -> tuple[dict[str, str], bool]:
        """Words for the frame, held out or not (None: either), and whether the subject is plural."""
        while True:
            nouns = dict(zip(("subject", "other", "third"), rng.sample(list(THINGS), 3), strict=True))
            nouns["person"] = rng.choice(list(PEOPLE))
            used = [noun for role, noun in nouns.items() if role != "subject" and f"{{{role}}}" in frame]
            if want_held in (None, any(held("agreement", nouns["subject"], noun) for noun in used)):
                break
        plural = {role: rng.random() < 0.5 for role in nouns}
        words = {role: (THINGS | PEOPLE)[noun] if plural[role] else noun for role, noun in nouns.items()}
        words["likes"] = "like" if plural["person"] else "likes"
        return words | {"prep": rng.choice(PREPOSITIONS), "adjective": rng.choice(ADJECTIVES)}, plural["subject"]


COPY_WORDS = sorted({*NAMES, *PLACES, *OBJECTS, *THINGS, *THINGS.values(), *PEOPLE, *ANIMALS, *ADJECTIVES,
                     *NATURE, *COUNTRY_OF, *COUNTRY_CITIES})  # fmt: skip


@final
class Induction(Skill):
    """A random list of distinct words in which a segment comes again: the next word is the one that followed.

    Held out as combinations: a tenth of all ordered word pairs is never adjacent in training, and the word
    asked for follows the last word of the prompt in such a pair (besides, no list of words comes twice).
    Held out as frames: segments of 11 and 12 words, where training has 3 to 10.
    """

    name = "induction"

    def document(self, rng: Random) -> Document:
        lead, gap, segment = self._parts(rng, size=rng.randint(3, 10))
        words, repeats = [*lead, *segment], []
        for _ in range(rng.randint(1, 2)):
            words += gap[: rng.randint(0, len(gap))]
            repeats.append((len(words) + 1, len(words) + len(segment)))
            words += segment
        if any(self._held(pair) for pair in pairwise(words)):
            return self.document(rng)
        starts = [len(" ".join(words[:index])) for index in range(len(words) + 1)]
        return Document(text=" ".join(words), scored=tuple((starts[a], starts[b]) for a, b in repeats))

    def item(self, rng: Random) -> Item:
        kind: Kind = rng.choice(("combination", "frame"))
        lead, gap, segment = self._parts(rng, size=rng.randint(11, 12) if kind == "frame" else rng.randint(3, 10))
        at = rng.randint(2, len(segment) - 1)
        if not self._held((segment[at - 1], segment[at])):
            return self.item(rng)
        prompt = [*lead, *segment, *gap, *segment[:at]]
        return Item(skill=self.name, kind=kind, prompt=" ".join(prompt), answer=" " + segment[at],
                    wrong=_spaced(word for word in segment if word != segment[at]))  # fmt: skip

    @staticmethod
    def _parts(rng: Random, *, size: int) -> tuple[list[str], list[str], list[str]]:
        lead, gap = rng.randint(0, 6), rng.randint(0, 6)
        words = rng.sample(COPY_WORDS, lead + gap + size)
        return words[:lead], words[lead : lead + gap], words[lead + gap :]

    @staticmethod
    def _held(pair: tuple[str, str]) -> bool:
        return held("induction", *pair, percent=10)


@final
class IndirectObject(Skill):
    """Two people, one gives: the receiver is the other one.

    Held out as combinations: 15 % of all pairs of names (in both orders), together with 15 % of all
    (place, object). Held out as frames: `new_frames`, each a new mixture of halves that training has.
    """

    name = "indirect_object"
    frames = (
        "When {a} and {b} went to the {place}, {giver} gave a {object} to {answer}.",
        "After {a} and {b} met at the {place}, {giver} handed a {object} to {answer}.",
        "While {a} and {b} were at the {place}, {giver} passed the {object} to {answer}.",
        "{a} and {b} walked to the {place}, and {giver} showed the {object} to {answer}.",
        "Then {a} and {b} had lunch at the {place}, and {giver} gave the {object} to {answer}.",
        "Yesterday {a} and {b} met at the {place}, and {giver} handed the {object} to {answer}.",
    )
    new_frames = (
        "After {a} and {b} went to the {place}, {giver} passed a {object} to {answer}.",
        "When {a} and {b} had lunch at the {place}, {giver} handed the {object} to {answer}.",
        "While {a} and {b} walked to the {place}, {giver} showed a {object} to {answer}.",
        "Then {a} and {b} were at the {place}, and {giver} passed the {object} to {answer}.",
    )

    def document(self, rng: Random) -> Document:
        words = self._words(rng, want_held=False)
        return Document(text=rng.choice(self.frames).format(**words))

    def item(self, rng: Random) -> Item:
        kind: Kind = rng.choice(("combination", "frame"))
        words = self._words(rng, want_held=True)
        frame = rng.choice(self.frames if kind == "combination" else self.new_frames)
        prompt, answer = prompt_of(frame, **words), " " + words["answer"]
        return Item(skill=self.name, kind=kind, prompt=prompt, answer=answer, wrong=(" " + words["giver"],))

    @staticmethod
    def _words(rng: Random, *, want_held: bool) -> dict[str, str]:
        while True:
            (a, b), place, thing = rng.sample(NAMES, 2), rng.choice(PLACES), rng.choice(OBJECTS)
            if held("names", *sorted((a, b))) == held("scene", place, thing) == want_held:
                break
        giver, answer = rng.sample((a, b), 2)
        return {"a": a, "b": b, "place": place, "object": thing, "giver": giver, "answer": answer}


FILLER = (
    "The {animal} sleeps {prep} the {place}.",
    "The {animal} runs {prep} the {thing}.",
    "The {thing} stands {prep} the {place}.",
    "{a} likes the {adjective} {thing}.",
    "{a} sees a {adjective} {object}.",
    "{a} lives in {city}.",
    "{a} is a friend of {b}.",
    "{a} and {b} like the {animal}.",
    "Every day {a} walks to the {place}.",
    "It is a {adjective} {animal}.",
    "There is a {thing} {prep} the {place}.",
    "{a} sits {prep} the {thing} and reads a book.",
    "The {nature} is beautiful.",
)
CHAT = ((0, "Where is the {}?"), (2, "What is the capital of {}?"), (3, "In which country is {}?"))
SKILLS: tuple[Skill, ...] = (Facts(), Agreement(), Induction(), IndirectObject())


def documents(seed: int) -> Iterator[Document]:
    """Training texts without end: lists of words, one to four sentences, or a short chat."""
    rng = Random(seed)
    while True:
        draw = rng.random()
        if draw < 0.25:
            yield Induction().document(rng)
        elif draw < 0.3:
            yield Document(text=_chat(rng))
        else:
            yield Document(text=" ".join(_sentence(rng) for _ in range(rng.randint(1, 4))))


def held_out(seed: int, *, per_skill: int) -> list[Item]:
    """So many different questions of each skill, none of which training may contain."""
    rng, items = Random(seed), []
    for skill in SKILLS:
        chosen: dict[str, Item] = {}
        while len(chosen) < per_skill:
            item = skill.item(rng)
            chosen[item.prompt] = item
        items += chosen.values()
    return items


def words() -> list[str]:
    """Each word of the language once, sorted, without spaces or punctuation."""
    relations = [(*relation.pairs, *relation.frames, *relation.new_frames) for relation in RELATIONS]
    agreement = [part for frame, verbs in (*Agreement.frames, *Agreement.new_frames) for part in (frame, *verbs)]
    texts = (*COPY_WORDS, *PEOPLE.values(), *PREPOSITIONS, "behind like likes user assistant system", *FILLER,
             *(question for _, question in CHAT), *(text for texts in relations for text in texts),
             *agreement, *IndirectObject.frames, *IndirectObject.new_frames)  # fmt: skip
    return sorted({word for text in texts for word in re.findall(r"\w+", re.sub(r"{\w*}", " ", text))})


def _sentence(rng: Random) -> str:
    kinds = (SKILLS[0], SKILLS[1], SKILLS[3], None)
    skill = rng.choices(kinds, (4, 4, 3, 2))[0]
    return _filler(rng) if skill is None else skill.document(rng).text


def _filler(rng: Random) -> str:
    a, b = rng.sample(NAMES, 2)
    prep, nouns = rng.choice([*PREPOSITIONS, "behind"]), list(THINGS)
    return rng.choice(FILLER).format(
        a=a, b=b, prep=prep, animal=rng.choice(ANIMALS), place=rng.choice(PLACES), thing=rng.choice(nouns),
        adjective=rng.choice(ADJECTIVES), object=rng.choice(OBJECTS), city=rng.choice(list(COUNTRY_OF)),
        nature=rng.choice(NATURE),
    )  # fmt: skip


def _chat(rng: Random) -> str:
    turns = []
    for number, question in rng.choices(CHAT, k=rng.randint(1, 2)):
        relation = RELATIONS[number]
        subject = rng.choice(list(relation.pairs))
        reply = relation.frames[0].format(subject=subject, answer=relation.pairs[subject])
        turns.append(f"user: {question.format(subject)}\nassistant: {reply}")
    return "<eos>\n".join(turns)


def _weighted(rng: Random, relations: Sequence[Relation]) -> Relation:
    return rng.choices(relations, [relation.weight for relation in relations])[0]


def _spaced(some_words: Iterable[str]) -> tuple[str, ...]:
    return tuple(f" {word}" for word in some_words)
