"""The playground's 36 topics in 6 categories, each with four things, three traits and four deeds.

None of these has a word that an instruction may forbid (`FORBIDDEN` in synthetic.py).
"""

from typing import NamedTuple


class Topic(NamedTuple):
    category: str
    name: str
    things: list[str]
    traits: list[str]
    deeds: list[str]


def _parse_topics(text: str) -> list[Topic]:
    topics, category, lines = [], "", iter(text.strip().splitlines())
    for line in lines:
        if not line.startswith(" "):
            category = line
            continue
        name, things, traits = line.strip().replace(": ", "; ").split("; ")
        topics.append(
            Topic(
                category,
                name,
                things.split(", "),
                traits.split(", "),
                next(lines).strip().split(", "),
            )
        )
    return topics


TOPICS = _parse_topics("""
animals
  otter: river, fish, fur, stone; quick, playful, clever
    swims at night, plays in the mud, hunts for fish, sleeps on its back
  owl: forest, moon, mouse, feather; silent, wise, patient
    hunts at night, turns its head, sleeps in a tree, calls to the moon
  bee: flower, garden, honey, queen; busy, small, brave
    dances for its friends, flies to the garden, works all day, makes honey
  whale: ocean, song, tail, ship; huge, gentle, slow
    sings under water, travels far, sleeps near the ship, feeds on small fish
  fox: forest, den, tail, snow; clever, red, shy
    hunts in the snow, hides in its den, walks alone, steals from the farm
  horse: farm, field, road, rider; strong, proud, gentle
    runs over the field, carries its rider, sleeps on its feet, eats all day
sky
  moon: night, tide, shadow, light; pale, silent, old
    moves the tide, changes its face, follows the road home, shines on the sea
  storm: thunder, wind, cloud, roof; loud, dark, wild
    shakes the roof, comes from the sea, bends every tree, ends with a song
  comet: tail, ice, star, sun; rare, bright, cold
    comes back each century, flies past the sun, carries old ice, burns like a lamp
  snow: winter, roof, child, street; white, soft, quiet
    covers the street, falls at night, hides every sound, melts in spring
  rainbow: rain, sun, colour, bridge; bright, brief, round
    follows the rain, bends over the hill, fades in an hour, paints the sky
  fog: harbour, lamp, bell, morning; grey, thick, slow
    hides the harbour, comes in the morning, swallows each lamp, drifts over the water
places
  harbour: ship, rope, fish, lamp; busy, old, salty
    wakes before the sun, smells of fish, welcomes each ship, sleeps in winter
  desert: sand, sun, camel, spring; dry, wide, quiet
    burns at noon, freezes at night, hides a spring, sings in the wind
  castle: tower, king, gate, wall; old, cold, proud
    guards the hill, keeps its secrets, waits for its king, falls to pieces
  library: book, lamp, reader, shelf; quiet, warm, wise
    opens at noon, keeps old books, smells of paper, welcomes each reader
  market: apple, bread, song, square; loud, bright, cheap
    fills the square, wakes before the sun, sells warm bread, ends at noon
  island: beach, boat, palm, storm; small, green, lonely
    waits for a boat, sleeps in the sea, grows tall palms, hides old gold
food
  bread: oven, flour, salt, baker; warm, simple, brown
    rises at night, smells of home, feeds the street, grows hard in a day
  tea: cup, leaf, water, guest; hot, gentle, bitter
    warms the hands, travels far, wakes a guest, turns the water gold
  cheese: milk, cave, mouse, knife; soft, salty, strong
    grows old in a cave, smells of the farm, waits for wine, needs good milk
  soup: pot, spoon, winter, onion; hot, thick, cheap
    sings in the pot, warms the winter, feeds ten guests, needs an onion
  honey: bee, jar, flower, bear; sweet, golden, slow
    shines in its jar, tastes of summer, lasts a century, calls each bear
  apple: tree, autumn, skin, seed; red, sweet, round
    falls in autumn, hides a star of seeds, feeds the birds, keeps all winter
things
  clock: tower, hour, bell, wheel; exact, round, stubborn
    counts the hours, rings at noon, runs too fast, stops at night
  bicycle: wheel, road, chain, bell; light, quick, simple
    climbs the hill, rests near the wall, needs no fuel, sings on the road
  kite: wind, string, sky, child; light, bright, proud
    dances in the wind, pulls on its string, falls in a tree, climbs to the clouds
  piano: key, song, room, hand; heavy, black, patient
    fills the room, waits for a hand, needs a friend, sings of old times
  compass: north, ship, needle, map; exact, small, loyal
    points to the north, guides the ship, trembles in a storm, sleeps in a pocket
  lantern: flame, night, glass, street; warm, bright, old
    guards the street, burns all night, calls each moth, trembles in the wind
garden
  rose: thorn, garden, bee, summer; red, proud, sweet
    opens in summer, guards its thorns, smells of honey, climbs the wall
  oak: acorn, root, bird, storm; old, strong, patient
    grows for a century, shelters each bird, stands in each storm, drops its acorns
  mushroom: rain, forest, shade, ring; pale, soft, shy
    grows in a night, hides in the shade, follows the rain, feeds on old wood
  snail: shell, leaf, rain, path; slow, shy, patient
    carries its home, eats each leaf, loves the rain, leaves a silver path
  frog: pond, fly, rain, song; green, wet, loud
    jumps in the pond, sings for rain, waits for a fly, sleeps in the mud
  seed: soil, water, sun, root; tiny, brown, brave
    sleeps in the soil, waits for water, follows the sun, travels in the wind
""")
