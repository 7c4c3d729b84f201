from tests.toys.pair import run as run
