"""Short instruction following without pictures, for tiny text-only backbones.

Everyday words, fixed sentence frames, answers of one to ten words. Every answer follows from the prompt or from common
knowledge that the corpus repeats often (opposites, kinds of things).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pfl_benchmarks.drake_synth.dice import Dice
from pfl_platform.data import Sample, Turn


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


PEOPLE = _words("Anna Ben Carla David Emma Frank Grace Henry Iris Jack Kate Leo Maria Noah Olga Paul")
PLACES = _words("park kitchen garden school market station library beach forest office museum hotel farm cellar")
KINDS = {
    "animal": _words("dog cat horse bird fish cow sheep mouse lion bear rabbit duck"),
    "food": _words("apple bread cheese soup cake rice egg salad orange carrot potato butter"),
    "tool": _words("hammer knife spoon brush needle rope ladder pen broom shovel"),
    "vehicle": _words("car bus train bike boat plane truck ship"),
    "garment": _words("hat coat shoe shirt glove scarf dress sock"),
    "body part": _words("hand foot head arm leg nose ear eye"),
}
THINGS = tuple(word for words in KINDS.values() for word in words)
MOVABLE = (*KINDS["tool"], *KINDS["garment"], "apple", "egg", "cake", "carrot", "potato")
COLOURS = _words("red green blue yellow black white brown grey")
OPPOSITES = {
    "hot": "cold", "big": "small", "fast": "slow", "old": "new", "happy": "sad", "light": "dark", "hard": "soft",
    "open": "closed", "early": "late", "full": "empty", "high": "low", "long": "short", "loud": "quiet", "rich": "poor",
    "strong": "weak", "wet": "dry", "clean": "dirty", "good": "bad", "near": "far", "thick": "thin",
    "easy": "difficult", "up": "down", "left": "right", "first": "last", "inside": "outside", "day": "night",
    "summer": "winter",
}  # fmt: skip
PAST = {
    "walks": "walked", "plays": "played", "cooks": "cooked", "works": "worked", "eats": "ate", "runs": "ran",
    "sings": "sang", "reads": "read", "writes": "wrote", "sleeps": "slept", "swims": "swam", "waits": "waited",
}  # fmt: skip
GOOD = _words("great lovely wonderful excellent delicious pleasant brilliant")
BAD = _words("terrible awful boring horrible disgusting dreadful poor")
NUMBERS = _words("zero one two three four five six seven eight nine ten")
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
FEELINGS = {"cried": "sad", "laughed": "happy", "yawned": "tired", "shivered": "cold", "ran away": "afraid"}
NEEDS = {
    "hungry": "ate some bread", "tired": "went to sleep", "cold": "put on a coat", "dirty": "took a bath",
    "thirsty": "drank some water", "late": "ran to the station", "bored": "read a book", "lost": "asked for the way",
}  # fmt: skip


@dataclass(frozen=True)
class Exchange:
    """An instruction, its answer, the options of a choice, and all accepted answers when there are several."""

    prompt: str
    answer: str
    options: tuple[str, ...] = ()
    references: tuple[str, ...] = ()


@dataclass(frozen=True)
class TextCorpus:
    """Sample i is a function of (seed, i) alone; no pictures.

    >>> TextCorpus(0).sample(5) == TextCorpus(0).sample(5)
    True
    """

    seed: int

    def sample(self, index: int) -> Sample:
        dice = Dice(self.seed, "text corpus", index)
        exchange = dice.pick(MAKERS)(dice)
        turn = Turn(exchange.prompt, exchange.answer)
        return Sample(
            id=f"text-{self.seed}-{index}", turns=(turn,), options=exchange.options, references=exchange.references
        )


def _choice(dice: Dice, question: str, answer: str, wrong: tuple[str, ...] | list[str], size: int = 4) -> Exchange:
    """A question with options: as a list, as lettered lines answered by text, or by letter."""
    pool = [word for word in dict.fromkeys(wrong) if word != answer]
    options = dice.shuffled([answer, *dice.take(pool, min(size - 1, len(pool)))])
    style = dice.below(3)
    if style == 0:
        return Exchange(f"{question}\nChoice list:[{', '.join(options)}]. Your answer is:", answer, tuple(options))
    if style == 1:
        lines = "\n- ".join(options)
        return Exchange(f"{question}\nOPTIONS:\n- {lines}", answer, tuple(options))
    lettered = " | ".join(f"{letter}. {option}" for letter, option in zip("ABCD", options, strict=False))
    letter = "ABCD"[options.index(answer)]
    prompt = f"{question}\nChoice list:[{lettered}]. Your answer is:"
    return Exchange(prompt, letter, tuple(options), (letter, answer))


def _copy(dice: Dice) -> Exchange:
    words = " ".join(dice.take(THINGS, 1 + dice.below(5)))
    return Exchange(
        dice.pick(("Repeat the words: {}.", "Copy this text: {}.", "Write again: {}.")).format(words), words
    )


def _reverse(dice: Dice) -> Exchange:
    words = dice.take(THINGS, 2 + dice.below(2))
    return Exchange(f"Write the words in reverse order: {' '.join(words)}.", " ".join(reversed(words)))


def _nth(dice: Dice) -> Exchange:
    words = dice.take(THINGS, 4)
    place = dice.below(4)
    ordinal = ("first", "second", "third", "last")[place]
    return Exchange(f"What is the {ordinal} word of: {' '.join(words)}?", words[place])


def _how_many(dice: Dice) -> Exchange:
    words = dice.take(THINGS, 1 + dice.below(7))
    return Exchange(f"How many words are in this list: {' '.join(words)}?", NUMBERS[len(words)])


def _with_word(dice: Dice) -> Exchange:
    words = dice.take(THINGS, 3 + dice.below(3))
    asked, held = dice.pick(THINGS), dice.chance(0.5)
    asked = dice.pick(words) if held else dice.pick([word for word in THINGS if word not in words])
    return Exchange(f"Is the word {asked} in this list: {' '.join(words)}? Answer yes or no.", "yes" if held else "no")


def _opposite(dice: Dice) -> Exchange:
    word, other = dice.pick(tuple(OPPOSITES.items()))
    if dice.chance(0.5):
        word, other = other, word
    question = dice.pick(("What is the opposite of {}?", "Give a word that means the opposite of {}.")).format(word)
    return _choice(dice, question, other, list(OPPOSITES)) if dice.chance(0.4) else Exchange(question, other)


def _kind(dice: Dice) -> Exchange:
    kind = dice.pick(tuple(KINDS))
    word = dice.pick(KINDS[kind])
    if dice.chance(0.5):
        return _choice(dice, f"What kind of thing is this: {word}?", kind, list(KINDS))
    others = [thing for name, things in KINDS.items() if name != kind for thing in things]
    return _choice(dice, f"Which of these is a kind of {kind}?", word, others)


def _odd(dice: Dice) -> Exchange:
    inner, outer = dice.take(tuple(KINDS), 2)
    odd = dice.pick(KINDS[outer])
    words = dice.shuffled([*dice.take(KINDS[inner], 3), odd])
    return Exchange(f"Which word does not belong with the others: {', '.join(words)}?", odd)


@dataclass(frozen=True)
class Fact:
    """Who put what where, when, and of which colour."""

    person: str
    thing: str
    place: str
    colour: str
    day: str

    @property
    def sentence(self) -> str:
        return f"On {self.day} {self.person} left {self.described} in the {self.place}."

    @property
    def described(self) -> str:
        return f"the {self.colour} {self.thing}"

    def questions(self) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
        """(question, answer, possible answers)."""
        return (
            (f"Who left the {self.thing}?", self.person, PEOPLE),
            (f"What did {self.person} leave?", self.described, ()),
            (f"Where is the {self.thing}?", f"in the {self.place}", ()),
            (f"Which colour is the {self.thing}?", self.colour, COLOURS),
            (f"When did {self.person} leave the {self.thing}?", f"on {self.day}", ()),
        )


def _fact(dice: Dice, **given: str) -> Fact:
    drawn = {
        "person": dice.pick(PEOPLE),
        "thing": dice.pick(MOVABLE),
        "place": dice.pick(PLACES),
        "colour": dice.pick(COLOURS),
        "day": dice.pick(DAYS),
    }
    return Fact(**{**drawn, **given})


def _reading(dice: Dice) -> Exchange:
    facts = [_fact(dice)]
    if dice.chance(0.5):
        thing = dice.pick([word for word in MOVABLE if word != facts[0].thing])
        facts.append(_fact(dice, thing=thing, person=dice.pick([p for p in PEOPLE if p != facts[0].person])))
    question, answer, options = dice.pick(dice.pick(facts).questions())
    prompt = f"{' '.join(fact.sentence for fact in facts)} {question}"
    return _choice(dice, prompt, answer, options) if options and dice.chance(0.4) else Exchange(prompt, answer)


def _claim(dice: Dice) -> Exchange:
    fact = _fact(dice)
    held = dice.chance(0.5)
    place = fact.place if held else dice.pick([place for place in PLACES if place != fact.place])
    prompt = f"{fact.sentence} Is the {fact.thing} in the {place}? Answer yes or no."
    return Exchange(prompt, "yes" if held else "no")


def _past(dice: Dice) -> Exchange:
    now, then = dice.pick(tuple(PAST.items()))
    tail = f"in the {dice.pick(PLACES)}."
    person = dice.pick(PEOPLE)
    return Exchange(f"Put this sentence in the past: {person} {now} {tail}", f"{person} {then} {tail}")


def _negate(dice: Dice) -> Exchange:
    thing, word = dice.pick(THINGS), dice.pick(tuple(OPPOSITES)[:20])
    return Exchange(f"Make this sentence negative: The {thing} is {word}.", f"The {thing} is not {word}.")


def _opinion(dice: Dice) -> Exchange:
    good = dice.chance(0.5)
    word, thing = dice.pick(GOOD if good else BAD), dice.pick(("film", "book", "meal", "song", "hotel", "game"))
    sentence = dice.pick(("The {thing} was {word}.", "What a {word} {thing}!", "I found the {thing} {word}."))
    question = f"Is this review positive or negative? {sentence.format(thing=thing, word=word)}"
    answer = "positive" if good else "negative"
    return _choice(dice, question, answer, ["positive", "negative"]) if dice.chance(0.5) else Exchange(question, answer)


def _sum(dice: Dice) -> Exchange:
    left = dice.below(6)
    right = dice.below(5)
    return Exchange(f"What is {NUMBERS[left]} plus {NUMBERS[right]}?", NUMBERS[left + right])


def _day(dice: Dice) -> Exchange:
    place, step = dice.below(7), dice.pick((1, -1))
    return Exchange(f"Which day comes {'after' if step > 0 else 'before'} {DAYS[place]}?", DAYS[(place + step) % 7])


def _story(dice: Dice) -> Exchange:
    need, act = dice.pick(tuple(NEEDS.items()))
    person = dice.pick(PEOPLE)
    prompt = dice.pick(("Complete the story: {} was {}. So {}", "Finish the sentence: Because {} was {}, {}"))
    return Exchange(prompt.format(person, need, person), f"{act}.")


def _feeling(dice: Dice) -> Exchange:
    act, feeling = dice.pick(tuple(FEELINGS.items()))
    question = f"{dice.pick(PEOPLE)} {act}. How did this person feel?"
    return _choice(dice, question, feeling, list(FEELINGS.values()))


def _question_of(dice: Dice) -> Exchange:
    fact = _fact(dice)
    return Exchange(
        f"Write a question about who did it: {fact.person} took the {fact.thing}.", f"Who took the {fact.thing}?"
    )


def _same_meaning(dice: Dice) -> Exchange:
    fact = _fact(dice)
    same = dice.chance(0.5)
    place = fact.place if same else dice.pick([place for place in PLACES if place != fact.place])
    first = f"The {fact.thing} is in the {fact.place}."
    second = f"In the {place} is the {fact.thing}."
    return _choice(dice, f"Do these sentences mean the same? {first} {second}", "yes" if same else "no", ["yes", "no"])


MAKERS: tuple[Callable[[Dice], Exchange], ...] = (
    _copy, _reverse, _nth, _how_many, _with_word, _opposite, _kind, _odd, _reading, _reading, _claim, _past, _negate,
    _opinion, _sum, _day, _story, _feeling, _question_of, _same_meaning,
)  # fmt: skip
