from tests.support.toys.duel import run as run
