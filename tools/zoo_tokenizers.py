"""Trains the tokenizers of the tiny backbones on the project's own questions.

Three byte-level BPE tokenizers, so any UTF-8 text can be read: `llama` and `qwen` for the vision-language models, which
cut words differently on purpose, and `text` for the text-only models. Training is deterministic.

    python tools/zoo_tokenizers.py
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from pfl_benchmarks.drake_synth.corpus import Corpus, TextCorpus
from pfl_model_zoo.cards import PACKAGE, all_cards
from pfl_model_zoo.chat import render

SAMPLES = 20_000
"""Questions that a tokenizer is trained on."""
IMAGE = "<image>"


@dataclass(frozen=True)
class Plan:
    """vocabulary: size with special tokens. words: how text is cut before merges are learned."""

    vocabulary: int
    words: pre_tokenizers.PreTokenizer
    pad: str
    bos: str | None
    eos: str
    image: bool


def plan_of(kind: str) -> Plan:
    """The plan of `llama`, `qwen` or `text`.

    `llama` and `text` cut words off with the space before them and keep punctuation apart. `qwen` cuts single digits,
    lets punctuation stay with its word, and has so few merges that rarer words fall into parts.
    """
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if kind == "llama":
        return Plan(768, plain, "<pad>", "<s>", "</s>", True)
    if kind == "text":
        return Plan(2048, plain, "<pad>", "<s>", "</s>", False)
    glued = pre_tokenizers.Split(Regex(r"\p{N}| ?[^\s\p{N}]+|\s+"), behavior="isolated")
    parts = pre_tokenizers.Sequence([glued, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    return Plan(512, parts, "<|endoftext|>", None, "<|im_end|>", True)


def texts(kind: str) -> Iterator[str]:
    """What a tokenizer is trained on: whole conversations, marks left out; for `text` also common English words."""
    corpus: Corpus | TextCorpus = TextCorpus(0) if kind == "text" else Corpus(0)
    for index in range(SAMPLES):
        for piece in render(corpus.sample(index)).pieces:
            if piece.role in ("frame", "prompt", "answer"):
                yield piece.text
    if kind == "text":
        for rank, word in enumerate(COMMON.split()):
            # Frequencies of words in English fall about as one over their rank.
            yield from [f" {word}", f" {word.capitalize()}"] * (1 + 4000 // (rank + 10))


def train(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer, trained."""
    plan = plan_of(kind)
    specials = [token for token in (plan.pad, plan.bos, plan.eos, IMAGE if plan.image else None) if token]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = plan.words
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=plan.vocabulary,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in specials],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(kind), trainer)
    names: dict[str, Any] = {"pad_token": plan.pad, "eos_token": plan.eos}
    if plan.bos:
        names["bos_token"] = plan.bos
    if plan.image:
        names["extra_special_tokens"] = {"image_token": IMAGE}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, model_max_length=1024, **names
    )


def kind_of(name: str) -> str:
    """Which tokenizer a tiny backbone reads with."""
    card = all_cards()[name]
    if card.modality == "text":
        return "text"
    return "qwen" if card.text_config["model_type"] == "qwen2" else "llama"


COMMON = """
the of and to a in is that for it was on as with be by at this he are from his not or have an they which you were had
one all but she her there been their we him has when who will more no if out so said what up its about into than them
can only other new some could time these two may then do first any my now such like our over man me even most made
after also did many before must through back years where much your way well down should because each just those people
how too little state good very make world still own see men work long get here between both life being under never day
same another know while last might us great old year off come since against go came right used take three states
himself few house use during without again place around however home small found thought went say part once general
high upon school every don't does got united left number course war until always away something fact though water less
public put think almost hand enough far took head yet government system better set told nothing night end why called
didn't eyes find going look asked later knew point next program city business give group toward young days let room
word present side social given several order national second possible rather per face among form important often things
looked early white case become large big need four within felt children along saw best church ever least power
development light thing seemed family interest want members others mind country area open done turned door best known
problem whole example question answer sentence following text input output task story write read choose option correct
given passage statement true false positive negative review based according either neither whether summary title person
name event cause effect reason because paragraph article word phrase language english context label class category
information relevant generate classify determine identify explain describe contain include similar different meaning
ing er ed ly ion tion ment ness able ful est ate ent ance ence ive ous ity ical al re un dis pre com con pro ex in de
com www http https not'nt isn't can't won't it's i'm i've that's let's you're they're we'll he's she's o'clock mr mrs
"""
"""Common English words, roughly by frequency, and word parts: text-only models meet more than the corpus."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=PACKAGE / "weights", help="folder that gets one folder per backbone"
    )
    chosen = parser.parse_args()
    trained: dict[str, PreTrainedTokenizerFast] = {}
    for card in all_cards().values():
        if card.bundled:
            kind = kind_of(card.name)
            if kind not in trained:
                trained[kind] = train(kind)
            trained[kind].save_pretrained(chosen.out / card.name)
            print(f"{card.name}: {kind}, {len(trained[kind])} tokens")


if __name__ == "__main__":
    main()
