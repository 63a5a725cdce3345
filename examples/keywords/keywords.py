"""keywords - a text on stdin, what it is about and how hard it reads on stdout, as JSON.

A script agent: this file is all there is. It runs on MicroPython, so it uses what that has: no
`collections`, and maps whose order means nothing, hence everything is sorted. The engine's heap is
about a megabyte, so the text is read piece by piece and never held as a whole.
"""
# ruff: noqa

import gc
import json
import sys

TOP = 10
PIECE = 2048  # characters read at once
WORD_MAX = 64  # the rest of a longer word is passed over
DISTINCT_MAX = 3000  # words, and phrases, that are counted; later ones only add to the totals

STOP_WORDS = set(
    """a about above after again all also am an and any are as at be because been before being
    below between both but by can cannot could did do does doing down during each even few for
    from further had has have having he her here hers him his how i if in into is it its itself
    just like many may me might more most much must my no nor not now of off on once one only or
    other our out over own same shall she should so some such than that the their them then
    there these they this those through to too two under until up upon us very was we were what
    when where which while who whom why will with would you your""".split()
)


def is_letter(c):
    # MicroPython knows only the ASCII ones; whatever lies beyond is taken for a letter too
    return c.isalpha() or ord(c) > 127


def syllables_of(word):
    """Groups of vowels, less a silent e: near enough for English."""
    count = 0
    was_vowel = False
    for c in word:
        vowel = c in "aeiouy" or ord(c) > 127
        count += vowel and not was_vowel
        was_vowel = vowel
    if word.endswith("e") and not word.endswith("le") and count > 1:
        count -= 1
    return max(count, 1)


def add(counts, name):
    if name in counts:
        counts[name] += 1
    elif len(counts) < DISTINCT_MAX:
        counts[name] = 1


class Tally:
    """What is known of the text so far; fed one character at a time."""

    def __init__(self):
        self.characters = self.words = self.sentences = self.syllables = 0
        self.keywords = {}
        self.phrases = {}
        self.word = ""
        self.joint = ""  # an apostrophe or dash that belongs to the word if a letter follows
        self.last = ""  # the keyword in front, if nothing stood between
        self.in_sentence = False
        self.at_end = False  # behind . ! or ?, which end a sentence if a space follows

    def feed(self, c):
        self.characters += 1
        if self.at_end and c in " \n\t\r\"')" and self.in_sentence:
            self.sentences += 1
            self.in_sentence = False
        self.at_end = c in ".!?"
        letter = is_letter(c)
        if letter or c.isdigit():
            self.in_sentence = True
        if letter or (c.isdigit() and self.word and not self.joint):
            if len(self.word) < WORD_MAX:
                self.word += self.joint + c.lower()
            self.joint = ""
        elif self.word:
            if c in "'-" and not self.joint:
                self.joint = c
            else:
                self.end_word()

    def end_word(self):
        word = self.word
        self.word = self.joint = ""
        self.words += 1
        self.syllables += syllables_of(word)
        if len(word) < 3 or word in STOP_WORDS:
            self.last = ""
            return
        add(self.keywords, word)
        if self.last:
            add(self.phrases, self.last + " " + word)
        self.last = word

    def end(self):
        if self.word:
            self.end_word()
        self.sentences = max(self.sentences + self.in_sentence, 1)

    def reading_ease(self):
        """Flesch: 100 is a children's book, 0 a statute. In hundredths, by integers, so that no
        two machines can round it differently."""
        per_sentence = 101500 * self.words // self.sentences
        per_word = 8460000 * self.syllables // self.words
        ease = (20683500 - per_sentence - per_word) // 1000
        sign = "-" if ease < 0 else ""
        ease = abs(ease)
        return "%s%d.%02d" % (sign, ease // 100, ease % 100)


def top(counts, least):
    """The most frequent ones; those that are equally frequent in the order of the alphabet."""
    ranked = []
    for name, n in counts.items():
        if n >= least:
            ranked.append((-n, name))
            if len(ranked) >= 4 * TOP:
                ranked = sorted(ranked)[:TOP]
    return [{"text": name, "count": -n} for n, name in sorted(ranked)[:TOP]]


def main():
    tally = Tally()
    while True:
        piece = sys.stdin.read(PIECE)
        if not piece:
            break
        for c in piece:
            tally.feed(c)
    tally.end()
    if not tally.words:
        sys.stderr.write("there is not a word in this text\n")
        sys.exit(1)
    fields = [
        ("characters", str(tally.characters)),
        ("words", str(tally.words)),
        ("sentences", str(tally.sentences)),
        ("reading_seconds", str((tally.words * 60 + 237) // 238)),
        ("reading_ease", tally.reading_ease()),
        ("keywords", json.dumps(top(tally.keywords, 1))),
        ("phrases", json.dumps(top(tally.phrases, 2))),
    ]
    print("{" + ", ".join(['"%s": %s' % field for field in fields]) + "}")


# This build of the engine (0.1a2) loses live objects when it collects garbage, and what follows is
# memory that is overwritten. Without collecting, a text that is too long ends in a MemoryError.
gc.disable()
main()
