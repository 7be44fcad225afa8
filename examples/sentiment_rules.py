"""Labels from rules: a sentiment lexicon and a dozen keyword rules vote, a label model decides.

On your own texts, from this folder:
hesstune label --target csv:reviews.csv --functions py:sentiment_rules:RULES --out labels.csv
"""

import re
from functools import cache

import hesstune as ht
from hesstune.noise import from_posterior
from hesstune.weak import apply_functions, label

KEYWORDS = {
    "praise": ("positive", "wonderful|excellent|brilliant|superb|masterpiece|terrific|delightful"),
    "liking": ("positive", "enjoy|enjoyable|charming|appealing|engaging|entertaining|fun"),
    "feeling": ("positive", "moving|touching|heartfelt|warm|tender|poignant|powerful"),
    "craft": ("positive", "clever|smart|witty|inventive|gorgeous|beautifully|compelling"),
    "best": ("positive", "best|perfect|great|finest|rare|remarkable"),
    "laughs": ("positive", "hilarious|funny|laugh|humor|comic"),
    "scorn": ("negative", "awful|terrible|horrible|dreadful|pathetic|stupid|worst"),
    "boredom": ("negative", "boring|dull|tedious|bland|lifeless|slow|flat"),
    "waste": ("negative", "waste|pointless|mess|disaster|fails|failed|failure|lacks|lacking"),
    "cliché": ("negative", "cliché|cliches|predictable|formulaic|contrived|stale|tired|recycled"),
    "excess": ("negative", "overlong|pretentious|heavy-handed|manipulative|sappy|annoying"),
    "regret": ("negative", "unfortunately|unfunny|bad|neither|too|hardly|wasn't|isn't|n't"),
}


def keyword_rule(name, verdict, words):
    """Return a labeling function: the verdict where one of the words occurs, else no vote."""
    pattern = re.compile(rf"(?<!\w)(?:{words})(?!\w)")

    def rule(row):
        return verdict if pattern.search(row["text"].lower()) else None

    rule.__name__ = name
    return rule


@cache
def analyzer():
    """Return vaderSentiment's analyzer (MIT licence; pip install vaderSentiment)."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def lexicon(row):
    """Return what the lexicon says of the text, or no vote where it is undecided."""
    score = analyzer().polarity_scores(row["text"])["compound"]
    return None if abs(score) < 0.05 else "positive" if score > 0 else "negative"


RULES = [lexicon, *(keyword_rule(name, *rule) for name, rule in KEYWORDS.items())]

# Texts with their true classes, to compare all rules with the lexicon alone.
TEXTS = {
    "a wonderful , moving film with a brilliant cast": "positive",
    "dull , predictable and far too long": "negative",
    "the jokes are funny and the story is charming": "positive",
    "an awful mess that lacks any point": "negative",
    "great fun , even if the plot is a cliché": "positive",
    "a tedious waste of a fine cast": "negative",
    "tender , clever and beautifully shot": "positive",
    "overlong and contrived , but pretty to look at": "negative",
    "formulaic from its first scene to its last": "negative",
    "the best thing about it is the score , and the rest is flat": "negative",
    "a gorgeous , inventive debut": "positive",
    "so stale that not one laugh survives": "negative",
    "witty , warm and never slow": "positive",
    "a smart thriller about a murder": "positive",
    "it is a shame about the heavy-handed ending of this lifeless drama": "negative",
    "a superb study of war and grief": "positive",
    "an unfunny comedy": "negative",
    "compelling from start to finish": "positive",
}

if __name__ == "__main__":
    classes = ["negative", "positive"]
    functions = [(rule.__name__, rule) for rule in RULES]
    votes = apply_functions(functions, [{"text": text} for text in TEXTS], classes)
    for row in votes.analysis():
        print(f"{row['labeler']:8s} votes on {row['coverage']:.0%} of the texts")
    found = label(votes, "majority")
    alone = [lexicon({"text": text}) for text in TEXTS]
    together = [None if given < 0 else classes[given] for given in found.labels]
    for name, given in (("lexicon", alone), ("rules", together)):
        right = sum(a == b for a, b in zip(given, TEXTS.values(), strict=True))
        print(f"{name}: test accuracy on true labels {right / len(TEXTS):.3f}")
    kept = found.labels >= 0
    estimate = from_posterior(found.posterior[kept], found.labels[kept])
    loss = ht.ConsistentLoss(ht.NoiseMatrix.from_array(0.9 * estimate.matrix.array + 0.1 * 0.5))
    print("ready to train with", type(loss).__name__)
