"""The tasks of the generated instructions, before any constraint: frames over hundreds of subjects.

`(one|other)` is either; `{s}` is the subject.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.data.instruction_phrases import choose_wording, split_words
from pipeline.data.instruction_topics import (
    ACTIVITIES,
    CHARACTERS,
    CONCEPTS,
    EVENTS,
    ISSUES,
    JOBS,
    LETTERS,
    LISTS,
    PAIRS,
    PLACES,
    PLANS,
    PRODUCTS,
    QUESTIONS,
    REVIEWS,
    SPEAKERS,
    THEMES,
    VERDICTS,
    Subject,
)


@dataclass(frozen=True)
class Task:
    """A request, the text that it is about (or ""), and words of its field.

    `request` has no punctuation at its end; that is `mark`.
    """

    kind: str
    topic: str
    request: str
    mark: str
    text: str
    words: tuple[str, ...]

    @property
    def has_room_before(self) -> bool:
        """Whether `Without a comma, …` may precede it: one sentence that commands."""
        is_one_sentence = ". " not in self.request and "? " not in self.request
        return self.has_room_after and is_one_sentence and self.request.split()[0] not in TELLING

    @property
    def has_room_after(self) -> bool:
        return self.mark == "."


TELLING = {"I", "I'd", "My", "We", "Our", "The"}
# Their subjects are clauses, which an ending without a comma would be read as part of.
LONG_SUBJECTS = ("letter", "story", "dialogue")

FRAMES: Mapping[str, tuple[str, ...]] = {
    "explain": (
        "Explain {s} to (a ten-year-old|a curious teenager|my grandmother|a complete beginner"
        "|someone in a hurry|a class of adults|my little sister)",
        "(Give me|Write) (a short|a simple|a quick|a clear) (introduction to|overview of"
        "|explanation of|summary of) {s}",
        "What should (a beginner|a student|a tourist|every adult|a voter|a journalist) know about"
        " {s}?",
        "Help me understand {s}",
        "What makes {s} (so important|worth knowing about|hard to understand)?",
        "Describe {s} (in plain language|without jargon|using an everyday example|step by step)",
        "Write (a blog post|a short article|a script for a short video|a paragraph for a school"
        " newsletter|an encyclopedia entry) about {s}",
        "Write (a short quiz|a few quiz questions|a few flashcards) about {s}",
        "What do people often get wrong about {s}?",
        "What is the (main|basic|central) idea behind {s}?",
        "I (missed|slept through|didn't follow) the lesson on {s}. (Sum up what I need to know"
        "|Tell me the most important points|Teach me the basics)",
        "I keep hearing about {s}. What is it all about?",
        "Make up an analogy (for|that explains) {s}",
    ),
    "how-to": (
        "Give me (some tips|advice|practical advice|your best advice) for {s}",
        "Write a (beginner's guide|step-by-step guide|short guide|newcomer's guide) to {s}",
        "What mistakes do people make when {s}?",
        "What do I need before {s}?",
        "How do I get better at {s}?",
        "My (brother|neighbour|best friend|colleague|aunt) is thinking about {s}. What should I"
        " tell (him or her|them)?",
        "Write a (cheerful|funny|motivating|frank) (post|paragraph|short speech) about {s}",
        "Plan a (first lesson|practice session|free afternoon) for someone interested in {s}",
        "Describe what {s} feels like (the first time|to a beginner|on a bad day)",
        "I have (one hour a week|a small budget|no experience at all), but I'm interested in {s}."
        " Where do I start?",
        "Convince me that {s} is worth the (effort|trouble|time)",
    ),
    "place": (
        "Describe {s} (to someone who has never been there|through the eyes of a child|early in the"
        " morning|as a poet would|for a guidebook)",
        "Write a postcard from {s}",
        "Write (a travel blog post|a diary entry|a short magazine piece|an advert) about {s}",
        "Plan a (one-day|weekend|slow) visit to {s}",
        "What would you (see|smell|hear) in {s}?",
        "Write the opening (scene|paragraph) of a novel set in {s}",
        "Why should anyone visit {s}?",
        "Give me a few facts about {s} that (would surprise a visitor|I could use in a quiz)",
    ),
    "product": (
        "Write (an ad|a short radio ad|a product description|a sales pitch) for {s}",
        "Write a (glowing|mixed|negative|funny) customer review of {s}",
        "Write a complaint to the maker of {s} that (broke after a week|arrived damaged"
        "|never arrived)",
        "Who would buy {s}, and why?",
        "Come up with a name and a short pitch for {s}",
        "Write an instruction leaflet for {s}",
        "I'm thinking of buying {s}. What should I (check first|ask the seller|watch out for)?",
        "Write a social media post (announcing|about|that makes fun of) {s}",
    ),
    "letter": (
        "Write (an email|a letter|a message|a short note) {s}",
        "Write a (polite|friendly|formal|firm|warm|short) (email|letter|message) {s}",
        "Draft (an email|a letter) {s}",
        "Help me write (an email|a letter|a message) {s}",
        "I need (an email|a letter|a short message) {s}",
    ),
    "story": (
        "Write a (short story|bedtime story|funny story|sad story|mystery|fable|fairy tale) about"
        " {s}",
        "Tell me a (story|short tale|funny story) about {s}",
        "Write the (opening|last scene|climax) of a (novel|film) about {s}",
        "Write a (newspaper report|diary entry|film synopsis|blurb) about {s}",
        "Write a (ballad|funny poem|song) about {s}",
        "Make up a story in which {s}",
    ),
    "poem": (
        "Write a (poem|short poem|rhyming poem|love poem|free-verse poem) about {s}",
        "Write (a song|a lullaby|a rap|an ode|the chorus of a song) about {s}",
        "Describe {s} in a poetic way",
        "I'd like a (short|funny|melancholy|hopeful) poem about {s}",
        "Compose a few lines about {s} (for a greeting card|to read at a wedding|for my notebook)",
        "Write a (riddle|nursery rhyme|toast) about {s}",
    ),
    "compare": (
        "Compare {s}",
        "What is the difference between {s}?",
        "Help me (decide|choose) between {s}",
        "What are the (pros and cons|advantages and disadvantages) of {s}?",
        "Write a (short|balanced|humorous) comparison of {s}",
        "Where do {s} differ the most?",
        "Explain the difference between {s} to (a child|a beginner|my father|a visitor from Mars)",
        "Write a debate speech that compares {s}",
    ),
    "plan": (
        "Plan {s}",
        "Help me (plan|prepare|organise) {s}",
        "Make a (checklist|schedule|shopping list|budget|timeline) for {s}",
        "What should I (think of|prepare|not forget) before {s}?",
        "Give me a (simple|cheap|creative|detailed) plan for {s}",
        "Suggest (a few ideas|some ideas|a theme|an original idea) for {s}",
        "I'm responsible for {s}. Tell me what to do first and what can wait",
        "What could go wrong with {s}?",
    ),
    "question": (
        "{s}",
        "{s}",
        "My (daughter|son|nephew|student) asked me this today: {s}",
        "Answer this for our school newspaper: {s}",
        "{s} (Explain it in simple terms|Explain it to a child|Give me the short version"
        "|Tell me as you would tell a friend|Use an example in your explanation)",
        "I've always wondered about this one. {s}",
    ),
    "verdict": (
        "{s}",
        "{s}",
        "Here is a question for you: {s}",
        "We (argued|talked) about this at (dinner|lunch|work): {s}",
        "I'm (writing a quiz|taking a survey|just curious). {s}",
        "Quick question. {s}",
    ),
    "list": (
        "(List|Suggest|Brainstorm) (some|a few|the best|your favourite) {s}",
        "What are (some|a few|the best) {s}?",
        "I'm looking for {s}. What do you suggest?",
        "Give me {s}",
        "Write a (short|fun|cheerful) article on {s}",
        "Can you think of {s}?",
        "Our club needs {s}. (Share your ideas|Come up with some)",
    ),
    "review": (
        "Write a (short|funny|fair|harsh|glowing|detailed) review of {s}",
        "Review {s}",
        "Write what a (grumpy|delighted|disappointed|patient) customer would say about {s}",
        "Write a (two-star|four-star|one-star) review of {s}",
        "I want to post something online about {s}. (Write it for me|Draft it for me)",
    ),
    "job": (
        "Write a (cover letter|résumé|job advertisement|short biography|letter of recommendation)"
        " for {s}",
        "Describe a day in the life of {s}",
        "What questions would you ask {s} in an interview?",
        "Write a speech for the retirement of {s}",
        "What skills does {s} need?",
        "Write a (funny|warm|short) profile of {s} for (the local paper|a company website)",
        "Give advice to {s} on the first day at work",
    ),
    "dialogue": (
        "Write a (dialogue|conversation|short dialogue|funny conversation) between {s}",
        "Write a (short scene|phone call|scene for a play) between {s}",
        "Imagine a (tense|friendly|comic) talk between {s} and write it down",
    ),
    "passage": (
        "(Summarize|Summarise|Sum up|Shorten) this (text|message|notice) (for me|)",
        "(Rewrite|Rephrase) the following (in a friendlier tone|in a more formal tone|so that a"
        " child understands it|as a short news item|in simpler words)",
        "Write a (reply|polite reply|short answer) to this message",
        "Turn the following into (an announcement|a short poem|a social media post|an email)",
        "Explain what this text says and who should read it",
        "Continue this text",
        "What is the most important point of this text?",
    ),
}

SUBJECTS: Mapping[str, Sequence[Subject]] = {
    "explain": CONCEPTS,
    "how-to": ACTIVITIES,
    "place": PLACES,
    "product": PRODUCTS,
    "letter": LETTERS,
    "poem": THEMES,
    "compare": PAIRS,
    "plan": PLANS,
    "question": QUESTIONS,
    "verdict": VERDICTS,
    "list": LISTS,
    "review": REVIEWS,
    "job": JOBS,
}

PEOPLE = split_words("""
Anna Bruno Carla Daniel Elif Farid Grace Hugo Ines Jonas Kemal Lena Marco Nadia Oscar Priya Quentin
Rosa Samir Tara Umberto Vera Wanda Yusuf Zoe""")
DAYS = split_words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
HOURS = [*(f"{hour} am" for hour in range(8, 12)), *(f"{hour} pm" for hour in range(1, 9))]
STREETS = [
    f"{name} {kind}"
    for name in split_words(
        "Mill Oak Castle Station Church River Garden Harbour King Rose Bridge North"
    )
    for kind in ("Street", "Road", "Lane")
]
# A text is made of these in order: each line is one of several, and a slot is filled at random.
PASSAGES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "a closed library": (
        ("library", "books", "closed", "return", "reader"),
        (
            "The library on {street} (will be|is) closed from {day} at {hour} (because of a burst"
            " pipe|while the floor is replaced|for the annual stocktaking|until the heating"
            " works).",
            "(Books can be returned|Please return your books) (at the town hall|at the school on"
            " {street}|in the box by the door) (until|before) {hour}.",
            "(No fines are charged|Loans are extended|Reserved books are kept) (this week|until"
            " {day}|for the time being).",
            "(Ask|Please ask|Write to) {person} (if you have questions|about the reading group"
            "|about the children's corner).",
        ),
    ),
    "a message from a friend": (
        ("dinner", "train", "friend", "weekend", "table"),
        (
            "Hi {person}! (I'm in town|I finally have some free time|We are back from holiday) on"
            " {day}.",
            "(Shall we meet|Do you want to eat|Are you free for a walk) (at the new place|near the"
            " park|by the old cinema) on {street} at {hour}?",
            "{other} (wants to come too|can't make it|is bringing a cake|sends greetings).",
            "(My phone is broken, so write an email|Call me after {hour}|Tell me if another day is"
            " better).",
        ),
    ),
    "minutes of a meeting": (
        ("meeting", "budget", "project", "decision", "team"),
        (
            "{person} opened the meeting at {hour} and (welcomed the new colleagues|apologised for"
            " the cold room|read out last week's tasks).",
            "The (budget|website|summer party|move to {street}) (took up most of the time|was"
            " discussed at length|is still an open question).",
            "{other} (will call the supplier|will write a first draft|asked for more time|disagreed"
            " with the plan) (by {day}|before the next meeting).",
            "(The team meets again|The next meeting is) on {day} at {hour}.",
        ),
    ),
    "a lost pet": (
        ("cat", "reward", "collar", "garden", "neighbour"),
        (
            "Our (grey|black|three-legged|very shy|orange) cat {person} has been missing since"
            " {day}.",
            "(She was last seen|A neighbour saw her|We think she is hiding) near {street} (around"
            " {hour}|late at night|behind the bakery).",
            "She wears a (red|blue|green|yellow) collar and (loves tuna|is afraid of dogs|limps a"
            " little|answers to her name).",
            "Please call {other} if you find her. (There is a reward|We miss her|Any hint helps).",
        ),
    ),
    "a complaint": (
        ("refund", "delivery", "order", "service", "week"),
        (
            "I ordered a (lamp|winter coat|desk|pair of boots|teapot) from your shop on {street} on"
            " {day}.",
            "(It arrived broken|It never arrived|The colour is wrong|One part is missing), and"
            " (nobody answers the phone|your chat is always closed|{person} promised to call"
            " back).",
            "(I have written three times|I waited until {hour}|I still have the receipt) (without"
            " success|and heard nothing).",
            "(I want my money back|Please send a new one|Tell me what you will do) by {day}.",
        ),
    ),
    "an opening": (
        ("bakery", "coffee", "customers", "morning", "street"),
        (
            "A new (bakery|flower shop|bicycle workshop|bookshop|tea house) opens on {street} next"
            " {day}.",
            "The owner, {person}, (worked as a teacher|lived on a boat|was a bank clerk|studied"
            " music) before (falling in love with the trade|taking the risk|moving here).",
            "The first (ten|twenty|fifty) visitors (get a free coffee|receive a small gift|pay half"
            " price).",
            "Doors open at {hour}, and {other} will (play the guitar|tell stories for children|cut"
            " the ribbon).",
        ),
    ),
    "an accident report": (
        ("bicycle", "witness", "police", "helmet", "rain"),
        (
            "On {day} at {hour} a (van|taxi|delivery bike|tram) hit a (fence|parked car|lamp post"
            "|fruit stall) on {street}.",
            "The driver, {person}, (was looking at a map|had braked for a dog|could not see in the"
            " rain|was tired after a long shift).",
            "(Luckily nobody was hurt|A passer-by hurt a knee|Two windows were broken).",
            "{other}, who (saw everything|was waiting for the bus|owns the kiosk), (called the"
            " police|took photos|made tea for everyone).",
        ),
    ),
    "a training plan": (
        ("running", "coach", "rest", "shoes", "distance"),
        (
            "{person} wants to run (five|ten|twenty) kilometres by (spring|summer|the end of the"
            " year).",
            "The plan starts on {day} with (a slow walk|two short runs|ten minutes of stretching)"
            " along {street}.",
            "(Every week adds a little distance|One day a week is free|Sleep counts as training),"
            " says {other}, who (coaches the local club|has run for thirty years).",
            "(Good shoes matter more than speed|Rain is not an excuse|Pain is a reason to stop).",
        ),
    ),
}


def make_task(rng: random.Random, kind: str) -> Task:
    """A request about a subject of this kind."""
    frame = choose_wording(rng, rng.choice(FRAMES[kind]))
    if kind == "passage":
        topic, words, text = _write_passage(rng)
        return Task(kind, topic, *_split_mark(frame.strip()), text, words)
    subject = _draw_subject(rng, kind)
    shown = subject.text
    if kind == "story" and "in which" in frame:
        shown = shown.replace(" who ", " ", 1)
    request, mark = _split_mark(frame.replace("{s}", shown))
    return Task(kind, subject.text, request, mark, "", subject.words)


def _draw_subject(rng: random.Random, kind: str) -> Subject:
    if kind == "story":
        hero, event = rng.choice(CHARACTERS), rng.choice(EVENTS)
        return Subject(f"{hero.text} who {event.text}", hero.words + event.words)
    if kind == "dialogue":
        issue = rng.choice(ISSUES)
        return Subject(f"{rng.choice(SPEAKERS)} about {issue.text}", issue.words)
    return rng.choice(SUBJECTS[kind])


def _split_mark(request: str) -> tuple[str, str]:
    return (request[:-1], "?") if request.endswith("?") else (request, ".")


def _write_passage(rng: random.Random) -> tuple[str, tuple[str, ...], str]:
    topic = rng.choice(list(PASSAGES))
    words, lines = PASSAGES[topic]
    person, other = rng.sample(PEOPLE, 2)
    sentences = [
        choose_wording(rng, line).format(
            person=person,
            other=other,
            day=rng.choice(DAYS),
            hour=rng.choice(HOURS),
            street=rng.choice(STREETS),
        )
        for line in lines
    ]
    return topic, words, " ".join(sentences)
