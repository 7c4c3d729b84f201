"""How a refusal begins, in English: what follows such words rarely answers."""

REFUSAL = (
    r"(?i)^\W*(i(’|')?m (really |very |so )?sorry|sorry, (but )?i|i apologi[sz]e, but"
    r"|i (can(’|')?t|cannot|am unable to|am not able to|won(’|')?t|will not)\b|i(’|')?m (unable|not able) to"
    r"|as an ai\b|unfortunately, i (can|am))"
)
OPENING = rb"(?i)\W|.[\x80-\xff]|i\W|im|so|as|un"  # the first two bytes of every text that it matches
