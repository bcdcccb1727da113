"""Words, names and numbers that generated prompts are made of."""

from __future__ import annotations

import string
import uuid
from random import Random


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split())


CITIES = _listed("""
Accra Ankara Athens Baku Bern Bogota Cairo Dakar Delhi Dublin Geneva Hanoi Havana Helsinki
Jakarta Kabul Kyoto Lagos Lima Lisbon London Madrid Manila Nairobi Oslo Paris Prague Quito Riga
Rome Seoul Sofia Tokyo Tunis Vienna Warsaw
""")
_FIRST = _listed("""
able angry bitter bold brave brief bright broad calm careful cheap clean clever cold crisp
cruel curly damp dark deep dense dry dull dusty early eager empty faint fair famous fierce fine
flat fresh gentle giant grand green happy harsh heavy hollow honest humble hungry icy jolly keen
kind large late lazy light little lively lonely long loud loyal lucky merry mild modest narrow
neat new noble odd old pale plain polite proud pure quick quiet rapid rare raw rich ripe rough
round rusty salty sharp shiny short shy silent silly slow smooth soft sour steep stiff strong
sweet swift tall tame tender thick thin tidy tiny tough vast warm weak wild wise wooden young
""")
_SECOND = _listed("""
acorn anchor apple arrow badge basket beach bell bench berry bird boat bottle branch bread
brick bridge brush bucket button cabin candle canoe carpet castle cave chair chain cherry clock
cloud coat coin comb copper cotton creek crown curtain daisy desert dish door drum eagle engine
farm feather fence field finger flame flute forest fork fountain fox garden gate glass glove
goat hammer harbor hat hill honey horse island jacket jar kettle key kite ladder lake lamp leaf
lemon letter lion map marble meadow mirror moon mountain nest needle ocean onion orchard oven
owl paper pearl pencil piano pillow pine plate pocket pond potato rabbit rail ribbon river road
rope rose saddle sail salt sand shell ship shoe silver spoon spring stone stool storm street sun
table tent thread tiger tower train tree tunnel valley violin wagon wall water wheel window wing
wolf wool yard
""")


def compound_words(count: int, random: Random) -> list[str]:
    """That many distinct words like "quiet-harbor"; very many have two adjectives."""
    num_pairs = len(_FIRST) * len(_SECOND)
    if count <= num_pairs // 2:
        return [_compound(index) for index in random.sample(range(num_pairs), count)]
    drawn = random.sample(range(num_pairs * len(_FIRST)), count)
    return [f"{_FIRST[index // num_pairs]}-{_compound(index % num_pairs)}" for index in drawn]


def _compound(index: int) -> str:
    return f"{_FIRST[index // len(_SECOND)]}-{_SECOND[index % len(_SECOND)]}"


def letter_words(count: int, size: int, random: Random, *, upper: bool = False) -> list[str]:
    """That many distinct words of `size` random letters."""
    letters = string.ascii_uppercase if upper else string.ascii_lowercase
    words: dict[str, None] = {}
    while len(words) < count:
        words["".join(random.choices(letters, k=size))] = None
    return list(words)


def numbers(count: int, digits: int, random: Random) -> list[str]:
    """That many distinct numbers of `digits` digits."""
    least = 10 ** (digits - 1)
    return [str(number) for number in random.sample(range(least, 10 * least), count)]


def uuids(count: int, random: Random) -> list[str]:
    return [str(uuid.UUID(int=random.getrandbits(128), version=4)) for _ in range(count)]
