from tests.toys.duel import run as run
