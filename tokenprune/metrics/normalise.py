"""The usual normalisation of short answers, that of the VQA benchmark.

Source: the evaluation that https://visualqa.org/evaluation.html describes. The rules, in their order:

1. Line breaks and tabs are spaces; spaces at both ends go.
2. A punctuation mark (not the apostrophe, colon and period) goes without a trace if it touches a space anywhere in the
   text, or if a comma anywhere in the text stands between two figures. Otherwise it becomes a space.
3. A period goes unless a figure follows it.
4. All is lower case. Number words up to ten become figures, and "none" becomes 0. The articles go.
5. A contraction that lacks one apostrophe gets it.
"""

import re

MARKS = ';/[]"{}()=+\\_-><@`,?!'
THOUSANDS = re.compile(r"\d,\d")
PERIOD = re.compile(r"\.(?!\d)")
ARTICLES = frozenset({"a", "an", "the"})
FIGURES = enumerate(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"])
NUMBERS = {"none": "0", **{word: str(figure) for figure, word in FIGURES}}
#: The contractions that the benchmark repairs. It leaves alone what is also another word ("we'll", "she'd", "it's").
CONTRACTIONS = re.findall(
    r"\S+",
    """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd somebody'd've somebody'll
    somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
    there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
    what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
    would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
    """,
)
REPAIRED = {word[: mark.start()] + word[mark.end() :]: word for word in CONTRACTIONS for mark in re.finditer("'", word)}


def normalise(text: str) -> str:
    """A short answer in the form in which answers are compared."""
    text = text.replace("\n", " ").replace("\t", " ").strip()
    vanish = THOUSANDS.search(text) is not None
    plain = text
    for mark in MARKS:
        touches_space = f"{mark} " in text or f" {mark}" in text
        plain = plain.replace(mark, "" if vanish or touches_space else " ")
    words = [NUMBERS.get(word, word) for word in PERIOD.sub("", plain).lower().split()]
    return " ".join(REPAIRED.get(word, word) for word in words if word not in ARTICLES)
