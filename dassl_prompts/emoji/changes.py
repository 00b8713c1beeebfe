"""Pictures of one style that differ from a reference by one stated change: the raw material of composed queries."""

from __future__ import annotations

from collections import defaultdict

from dassl_prompts.emoji.archives import Picture

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey")
HAIR_CODES = ("1f9b0", "1f9b1", "1f9b2", "1f9b3", "1f471")
TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
GENDER_WORDS = {
    "woman": "a woman",
    "man": "a man",
    "girl": "a girl",
    "boy": "a boy",
    "person": "gender-neutral",
}


class Changes:
    """Finds, within one style and split, the pictures that differ from a reference by one stated change."""

    def __init__(self, concepts):
        self.by_family, self.by_subgroup = defaultdict(list), defaultdict(list)
        for c in concepts:
            self.by_family[self.without_hair(c)].append(c)
            self.by_subgroup[c.subgroup].append(c)

    @staticmethod
    def without_hair(concept):
        return "-".join(part for part in concept.family.split("-") if part not in HAIR_CODES)

    def kinds(self):
        return {
            "tone": self.tone,
            "gender": self.gender,
            "hair": self.hair,
            "facing": self.facing,
            "colour": self.colour,
            "concept": self.concept,
            "compound": self.compound,
        }

    def relatives(self, picture, **same):
        """Members of the family, whatever their hair, with a picture in the same tone, equal in the
        attributes named by `same`.
        """
        c = picture.concept
        return [
            r
            for r in self.by_family[self.without_hair(c)]
            if r is not c
            and (picture.tone is None or picture.tone in r.tones)
            and all(getattr(r, a) == getattr(c, a) for a in same)
        ]

    def tone(self, p, rng):
        tones = [t for t in (None, *p.concept.tones) if t != p.tone]
        if not p.concept.tones or not tones:
            return None
        tone = rng.choice(tones)
        word = f"{tone} skin tone" if tone else "the default yellow skin"
        return Picture(p.concept, p.style, tone), rng.choice(
            (
                f"change the skin tone to {tone}" if tone else "remove the skin tone",
                f"with {word}",
                f"the same but with {word}",
            )
        )

    def gender(self, p, rng):
        found = [r for r in self.relatives(p, hair=1, facing=1) if r.gender and r.gender != p.concept.gender]
        if not found or not p.concept.gender:
            return None
        target = rng.choice(found)
        word = GENDER_WORDS[target.gender]
        return Picture(target, p.style, p.tone), rng.choice(
            (f"make it {word}", f"the same but {word}", f"{word} instead")
        )

    def hair(self, p, rng):
        found = [r for r in self.relatives(p, gender=1, facing=1) if r.hair and r.hair != p.concept.hair]
        if not found:
            return None
        target = rng.choice(found)
        word = f"a {target.hair}" if target.hair == "bald head" else target.hair
        return Picture(target, p.style, p.tone), rng.choice(
            (f"with {word}", f"with {word} instead", f"the same but with {word}")
        )

    def facing(self, p, rng):
        found = [r for r in self.relatives(p, gender=1, hair=1) if r.facing != p.concept.facing]
        if not found:
            return None
        words = ("facing right", "turned to the right") if found[0].facing else ("facing left", "turned to the left")
        return Picture(found[0], p.style, p.tone), rng.choice(words)

    def colour(self, p, rng):
        """Concepts whose names differ in a colour word only: 'red heart' -> 'blue heart'."""
        words = p.concept.name.split()
        own = [w for w in words if w in COLOURS]
        if len(own) != 1 or p.concept.tones:  # a hair colour is a change of hair
            return None
        at = words.index(own[0])
        wanted = {" ".join([*words[:at], w, *words[at + 1 :]]): w for w in COLOURS if w != own[0]}
        found = [c for c in self.by_subgroup[p.concept.subgroup] if c.name in wanted]
        if not found:
            return None
        target = rng.choice(found)
        word = wanted[target.name]
        return Picture(target, p.style), rng.choice((f"make it {word}", f"{word} instead of {own[0]}", f"in {word}"))

    def concept(self, p, rng):
        if p.concept.tones:
            return None
        found = [c for c in self.by_subgroup[p.concept.subgroup] if c.family != p.concept.family and not c.tones]
        if not found:
            return None
        target = rng.choice(found)
        return Picture(target, p.style), rng.choice(
            (
                f"{target.name} instead of {p.concept.name}",
                f"change it to {target.name}",
                f"not {p.concept.name} but {target.name}",
                f"replace it with {target.name}",
            )
        )

    def compound(self, p, rng):
        """Gender and tone at once."""
        first = self.gender(p, rng)
        second = first and self.tone(first[0], rng)
        if not second or second[0].tone is None:
            return None
        target = second[0]
        return target, f"make it {GENDER_WORDS[target.concept.gender]} with {target.tone} skin tone"
